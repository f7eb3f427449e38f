#!/bin/sh
# Distils a student by one of the published recipes. Run it again and it goes on where it stopped.
#
#   sh distill.sh             RoBERTa -> RBT6(KD) -> MiniRBT-H256, in two stages
#   sh distill.sh h288        RoBERTa -> RBT6(KD) -> MiniRBT-H288, in two stages
#   sh distill.sh one-stage   RoBERTa -> MiniRBT-H256
#   sh distill.sh rbt4        RoBERTa -> RBT4-H312
#   sh distill.sh rbt3        the first three layers of RoBERTa, continued by masked-LM alone
#
# Every variable below can be set from outside:  ngpu=2 train_steps=1000 sh distill.sh h288
set -eu
cd "$(dirname "$0")"

recipe=${1:-h256}

# ---- models and data
teacher=${teacher:-./pretrained_model_path/RoBERTa}   # model directory of the teacher
json_files=${json_files:-./jsons/data.json}           # which text and reference files
data_cache_dir=${data_cache_dir:-./dataset/shards}    # tokenised shards, shared by all runs on the same data
saves=${saves:-./saves}                               # the runs go to $saves/rbt6_kd, $saves/minirbt_h256, ...

# ---- machines
ngpu=${ngpu:-$(nvidia-smi -L 2>/dev/null | grep -c . || true)}
[ "$ngpu" -gt 0 ] || ngpu=1                           # processes on this machine; 1 where there is no GPU
nnodes=${nnodes:-1}                                   # machines
node_rank=${node_rank:-0}                             # which of them this is
master_addr=${master_addr:-127.0.0.1}                 # address of machine 0
master_port=${master_port:-29500}

# ---- training; the published values
train_steps=${train_steps:-100000}
save_steps=${save_steps:-10000}
global_batch=${global_batch:-4096}                    # samples an optimizer step, over all processes
forward_batch=${forward_batch:-64}                    # samples a forward and process; lower it when memory runs out
length=${length:-512}
lr=${lr:-4e-4}
temperature=${temperature:-8}
seed=${seed:-1337}
precision=${precision:-bf16}                          # bf16, fp16 (older GPUs) or fp32
compile=${compile:-no}                                # yes: torch.compile
workers=${workers:-$(getconf _NPROCESSORS_ONLN)}      # threads that tokenise
python=${python:-python}

# ---- the recipe's models
ta_config=${ta_config:-./distill_configs/distill_rbt6.json}
ta_layers=${ta_layers:-0 2 4 7 9 11}
ta_matches=${ta_matches:-L6_hidden_mse}
case $recipe in
h256) default_config=MiniRBT-h256 default_matches=L6h256_rbt6_hidden_mse ;;
h288) default_config=MiniRBT-h288 default_matches=L6h288_rbt6_hidden_mse ;;
one-stage) default_config=MiniRBT-h256 default_matches=L6h256_roberta_hidden_mse ;;
rbt4) default_config=distill_rbt4_312 default_matches=L4t_hidden_mse ;;
rbt3) default_config=distill_rbt3 default_matches= ;;
*)
    echo "error: distill.sh $recipe: no such recipe; choose h256, h288, one-stage, rbt4 or rbt3" >&2
    exit 2
    ;;
esac
student_config=${student_config:-./distill_configs/$default_config.json}
student_matches=${student_matches:-$default_matches}

# ---- checks before time is spent
for pair in "ngpu=$ngpu" "nnodes=$nnodes" "train_steps=$train_steps" "save_steps=$save_steps" "global_batch=$global_batch" \
    "forward_batch=$forward_batch" "length=$length" "workers=$workers"; do
    case ${pair#*=} in
    '' | *[!0-9]* | 0*)
        echo "error: distill.sh: $pair: must be a whole number above 0" >&2
        exit 2
        ;;
    esac
done
process_batch=$((global_batch / (ngpu * nnodes)))
if [ $((process_batch * ngpu * nnodes)) -ne "$global_batch" ]; then
    echo "error: distill.sh: global_batch=$global_batch is not divisible by ngpu=$ngpu times nnodes=$nnodes" >&2
    exit 2
fi
[ "$forward_batch" -le "$process_batch" ] || forward_batch=$process_batch
if [ $((process_batch % forward_batch)) -ne 0 ]; then
    echo "error: distill.sh: $process_batch samples a process and step are not divisible by forward_batch=$forward_batch" >&2
    exit 2
fi
case $precision in
bf16 | fp16) set -- "--$precision" ;;
fp32) set -- ;;
*)
    echo "error: distill.sh: precision=$precision: choose bf16, fp16 or fp32" >&2
    exit 2
    ;;
esac
case $compile in
yes) set -- "$@" --compile ;;
no) ;;
*)
    echo "error: distill.sh: compile=$compile: choose yes or no" >&2
    exit 2
    ;;
esac

# run COMMAND...: a signal to this script reaches the command, which then writes its checkpoint before it ends.
run() {
    "$@" &
    child=$!
    trap 'kill -TERM "$child" 2>/dev/null' TERM
    trap 'kill -INT "$child" 2>/dev/null' INT
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    trap - TERM INT
    [ "$status" -eq 0 ] || exit "$status"
}

# train NAME CONFIG ARGUMENTS...: one run in $saves/NAME, resumed if it was begun.
train() {
    name=$1 config=$2
    shift 2
    if [ $((ngpu * nnodes)) -eq 1 ]; then
        launch=$python
    else
        launch="$python -m torch.distributed.run --nproc_per_node=$ngpu --nnodes=$nnodes --node_rank=$node_rank --master_addr=$master_addr --master_port=$master_port"
    fi
    echo "==== $saves/$name"
    # shellcheck disable=SC2086
    run $launch train.py --do_train --resume_from_checkpoint latest \
        --student_config "$config" --output_dir "$saves/$name" \
        --data_files_json "$json_files" --data_cache_dir "$data_cache_dir" --preprocessing_num_workers "$workers" \
        --max_seq_length "$length" --num_train_steps "$train_steps" --ckpt_steps "$save_steps" \
        --train_batch_size "$process_batch" --gradient_accumulation_steps $((process_batch / forward_batch)) \
        --learning_rate "$lr" --official_schedule linear --temperature "$temperature" --random_seed "$seed" "$@"
}

# first_layers NAME LAYERS...: first weights out of the teacher's layers.
first_layers() {
    name=$1
    shift
    run "$python" scripts/init_checkpoint_TA.py --model_name_or_path "$teacher" --dump_checkpoint "$saves/$name" --layers "$@"
}

# The shards are made here, by one process, before several wait for them.
run "$python" my_datasets.py --data_files_json "$json_files" --data_cache_dir "$data_cache_dir" --tokenizer "$teacher" \
    --max_seq_length "$length" --preprocessing_num_workers "$workers"

case $recipe in
h256 | h288)
    # shellcheck disable=SC2086
    first_layers rbt6_init $ta_layers
    # shellcheck disable=SC2086
    train rbt6_kd "$ta_config" --teacher_name_or_path "$teacher" --student_pretrained_weights "$saves/rbt6_init" --matches $ta_matches "$@"
    student=minirbt_$recipe student_teacher=$saves/rbt6_kd/gs$train_steps
    ;;
one-stage) student=minirbt_h256_one_stage student_teacher=$teacher ;;
rbt4) student=rbt4_h312 student_teacher=$teacher ;;
rbt3) student=rbt3 ;;
esac
if [ "$recipe" = rbt3 ]; then
    first_layers rbt3_init 0 1 2
    train rbt3 "$student_config" --tokenizer "$teacher" --student_pretrained_weights "$saves/rbt3_init" "$@"
else
    # shellcheck disable=SC2086
    train "$student" "$student_config" --teacher_name_or_path "$student_teacher" --matches $student_matches "$@"
fi
echo "==== $saves/$student/gs$train_steps: load it with BertModel.from_pretrained and BertTokenizer.from_pretrained"
