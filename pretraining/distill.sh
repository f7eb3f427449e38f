#!/bin/sh
# Distils a student by one of the published recipes. Run the same command again to resume.
#
#   sh distill.sh             RoBERTa -> RBT6(KD) -> MiniRBT-H256, in two stages
#   sh distill.sh h288        RoBERTa -> RBT6(KD) -> MiniRBT-H288, in two stages
#   sh distill.sh one-stage   RoBERTa -> MiniRBT-H256
#   sh distill.sh rbt4        RoBERTa -> RBT4-H312
#   sh distill.sh rbt3        the first three layers of RoBERTa, continued by masked-LM only
#
# Three recipes match the relations among queries, keys and values (MiniLMv2) in place of hidden states, beside the soft labels:
#
#   sh distill.sh h256-relation   RoBERTa -> RBT6(KD) -> MiniRBT-H256, in two stages
#   sh distill.sh h288-relation   RoBERTa -> RBT6(KD) -> MiniRBT-H288, in two stages
#   sh distill.sh rbt4-relation   RoBERTa -> RBT4-H312
#
# Set variables after the recipe; the recipe may be left out:
#
#   sh distill.sh h288 ngpu=2 train_steps=1000
#   sh distill.sh train_steps=1000
#
# Variables from outside work too (ngpu=2 sh distill.sh h288), but nobody sees a misspelt one there. A word after the recipe wins.
# The settings in force are printed first. recipes.py holds the recipes, checks the variables and runs the stages.
set -eu
cd "$(dirname "$0")"

# ---- models and data
teacher=${teacher:-./pretrained_model_path/RoBERTa}   # model directory of the teacher
json_files=${json_files:-./jsons/data.json}           # which text and reference files
data_cache_dir=${data_cache_dir:-./dataset/shards}    # tokenised shards, shared by all runs on the same data
saves=${saves:-./saves}                               # the runs go to $saves/rbt6_kd, ...; several machines must share this disk

# ---- machines
ngpu=${ngpu:-}                                        # processes on this machine; default: its visible GPUs, 1 where there is none
nnodes=${nnodes:-1}                                   # machines
node_rank=${node_rank:-0}                             # which of them this is
master_addr=${master_addr:-127.0.0.1}                 # address of machine 0
master_port=${master_port:-29500}                     # a port of machine 0, the same for all

# ---- training; the published values
train_steps=${train_steps:-100000}                    # optimizer steps of each stage
save_steps=${save_steps:-10000}                       # steps between checkpoints; the last step always writes one
global_batch=${global_batch:-4096}                    # samples per optimizer step, over all processes
forward_batch=${forward_batch:-auto}                  # samples per forward pass and process; auto: what fits the GPU's memory
length=${length:-512}                                 # tokens per sample
lr=${lr:-4e-4}                                        # peak learning rate
temperature=${temperature:-8}                         # divides the logits in the distillation loss
seed=${seed:-10236797}                                # decides first weights, order, masks and dropout
precision=${precision:-bf16}                          # bf16, fp16 (older GPUs) or fp32
compile=${compile:-auto}                              # torch.compile: auto (on a GPU with a C compiler), yes or no
workers=${workers:-$(getconf _NPROCESSORS_ONLN)}      # threads that tokenise
python=${python:-python}                              # the interpreter, with this project installed

# ---- the recipe's models
ta_config=${ta_config:-./distill_configs/distill_rbt6.json} # config JSON of the assistant
ta_layers=${ta_layers:-0 2 4 7 9 11}                  # layers of the teacher that the assistant RBT6(KD) starts from
ta_matches=${ta_matches:-L6_hidden_mse}               # names from matches.py
student_config=${student_config:-}                    # default: the recipe's
student_matches=${student_matches:-}                  # default: the recipe's

for word in "$@"; do
    case $word in
        python=?*) python=${word#python=} ;;
        -h | --help) exec sed -n '2,/^for word/{/^set -eu/d;/^cd /d;/^for word/d;s/^# \{0,1\}//;s/=\${[a-z_]*:-\(.*\)} */=\1  /;p;}' distill.sh ;;
    esac
done
command -v "$python" >/dev/null || {
    echo "error: distill.sh: python=$python: no such command; activate .venv or name another" >&2
    exit 2
}
"$python" -c 'import pretraining' 2>/dev/null || {
    echo "error: distill.sh: python=$python does not find this project; run pip install -e . in its directory" >&2
    exit 2
}
exec "$python" recipes.py \
    --teacher="$teacher" --json_files="$json_files" --data_cache_dir="$data_cache_dir" --saves="$saves" \
    --ngpu="$ngpu" --nnodes="$nnodes" --node_rank="$node_rank" --master_addr="$master_addr" --master_port="$master_port" \
    --train_steps="$train_steps" --save_steps="$save_steps" --global_batch="$global_batch" --forward_batch="$forward_batch" \
    --length="$length" --lr="$lr" --temperature="$temperature" --seed="$seed" --precision="$precision" --compile="$compile" \
    --workers="$workers" --python="$python" \
    --ta_config="$ta_config" --ta_layers="$ta_layers" --ta_matches="$ta_matches" \
    --student_config="$student_config" --student_matches="$student_matches" \
    -- "$@"
