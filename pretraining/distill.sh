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

fail() {
    echo "error: distill.sh: $*" >&2
    exit 2
}

recipe=${1:-h256}
[ $# -le 1 ] || fail "$*: takes one word, the recipe; variables go before: lr=1e-4 sh distill.sh"

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
master_port=${master_port:-29500}

# ---- training; the published values
train_steps=${train_steps:-100000}
save_steps=${save_steps:-}                            # 10000, or train_steps if that is less
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
h256) student=minirbt_h256 default_config=MiniRBT-h256 default_matches=L6h256_rbt6_hidden_mse ;;
h288) student=minirbt_h288 default_config=MiniRBT-h288 default_matches=L6h288_rbt6_hidden_mse ;;
one-stage) student=minirbt_h256_one_stage default_config=MiniRBT-h256 default_matches=L6h256_roberta_hidden_mse ;;
rbt4) student=rbt4_h312 default_config=distill_rbt4_312 default_matches=L4t_hidden_mse ;;
rbt3) student=rbt3 default_config=distill_rbt3 default_matches= ;;
*) fail "$recipe: no such recipe; choose h256, h288, one-stage, rbt4 or rbt3" ;;
esac
student_config=${student_config:-./distill_configs/$default_config.json}
student_matches=${student_matches:-$default_matches}

# ---- checks before time is spent
command -v "$python" >/dev/null || fail "python=$python: no such command; activate .venv or name another"
[ -n "$ngpu" ] || ngpu=$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')
[ -n "$save_steps" ] || save_steps=10000
if [ "$save_steps" = 10000 ] && [ "$train_steps" -lt 10000 ] 2>/dev/null; then save_steps=$train_steps; fi
for pair in "ngpu=$ngpu" "nnodes=$nnodes" "train_steps=$train_steps" "save_steps=$save_steps" "global_batch=$global_batch" \
    "forward_batch=$forward_batch" "length=$length" "workers=$workers" "master_port=$master_port"; do
    case ${pair#*=} in
    '' | *[!0-9]* | 0* | ??????????*) fail "$pair: must be a whole number above 0" ;;
    esac
done
case $node_rank in
'' | *[!0-9]* | ??????????*) fail "node_rank=$node_rank: must be a whole number" ;;
esac
[ "$node_rank" -lt "$nnodes" ] || fail "node_rank=$node_rank: must be less than nnodes=$nnodes, as the machines count from 0"
process_batch=$((global_batch / (ngpu * nnodes)))
[ $((process_batch * ngpu * nnodes)) -eq "$global_batch" ] ||
    fail "global_batch=$global_batch is not divisible by ngpu=$ngpu times nnodes=$nnodes"
[ "$forward_batch" -le "$process_batch" ] || forward_batch=$process_batch
[ $((process_batch % forward_batch)) -eq 0 ] ||
    fail "$process_batch samples a process and step are not divisible by forward_batch=$forward_batch"
case $precision in
bf16 | fp16) set -- "--$precision" ;;
fp32) set -- ;;
*) fail "precision=$precision: choose bf16, fp16 or fp32" ;;
esac
case $compile in
yes) set -- "$@" --compile ;;
no) ;;
*) fail "compile=$compile: choose yes or no" ;;
esac

# run COMMAND...: a signal to this script reaches the command, which then writes its checkpoint before it ends.
run() {
    "$@" &
    child=$!
    stopped=0
    trap 'stopped=143; kill -TERM "$child" 2>/dev/null' TERM
    trap 'stopped=130; kill -INT "$child" 2>/dev/null' INT
    trap 'stopped=129; kill -HUP "$child" 2>/dev/null' HUP
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    trap - TERM INT HUP
    [ "$stopped" -eq 0 ] || exit "$stopped" # torchrun's own status is 1
    [ "$status" -eq 0 ] || exit "$status"
}

# train NAME CONFIG ARGUMENTS...: one run in $saves/NAME, resumed if it was begun; where checking=yes it ends after its checks.
train() {
    name=$1 config=$2
    shift 2
    set -- train.py --do_train --resume_from_checkpoint latest \
        --student_config "$config" --output_dir "$saves/$name" \
        --data_files_json "$json_files" --data_cache_dir "$data_cache_dir" --preprocessing_num_workers "$workers" \
        --max_seq_length "$length" --num_train_steps "$train_steps" --ckpt_steps "$save_steps" \
        --train_batch_size "$process_batch" --gradient_accumulation_steps $((process_batch / forward_batch)) \
        --learning_rate "$lr" --official_schedule linear --temperature "$temperature" --random_seed "$seed" "$@"
    if [ $checking = yes ]; then
        run "$python" "$@" --check_only
        return
    fi
    echo "==== $saves/$name"
    if [ $((ngpu * nnodes)) -eq 1 ]; then
        run "$python" "$@"
    else # a step and a checkpoint may take long: time to finish them after a signal; so may what the other machines wait for
        run "$python" -m torch.distributed.run --nproc_per_node="$ngpu" --nnodes="$nnodes" --node_rank="$node_rank" \
            --master_addr="$master_addr" --master_port="$master_port" --shutdown-timeout=1800 --rdzv-conf=timeout=604800 "$@"
    fi
}

# first_layers NAME LAYERS...: first weights out of the teacher's layers.
first_layers() {
    name=$1
    shift
    run "$python" scripts/init_checkpoint_TA.py --model_name_or_path "$teacher" --dump_checkpoint "$saves/$name" --layers "$@"
}

# train_assistant, train_student TEACHER: the stages; what follows are flags of the precision.
train_assistant() {
    # shellcheck disable=SC2086
    train rbt6_kd "$ta_config" --teacher_name_or_path "$teacher" --matches $ta_matches "$@"
}
train_student() {
    if [ "$recipe" = rbt3 ]; then
        shift
        train rbt3 "$student_config" --tokenizer "$teacher" "$@"
    else
        # shellcheck disable=SC2086
        train "$student" "$student_config" --tokenizer "$teacher" --matches $student_matches --teacher_name_or_path "$@"
    fi
}

# Both stages are checked before the first begins; the second's teacher is known by its config alone.
checking=yes
case $recipe in
h256 | h288)
    train_assistant "$@"
    train_student "$ta_config" "$@"
    ;;
*) train_student "$teacher" "$@" ;;
esac

for made in "$saves/$student"/gs*; do
    case $recipe in
    h256 | h288)
        [ ! -e "$made" ] || [ -e "$saves/rbt6_kd" ] ||
            fail "$saves/$student has checkpoints, but the teacher assistant $saves/rbt6_kd is gone; move one away or bring the other back"
        ;;
    esac
done

checking=no
# What all processes read is made by one of them; the other machines wait at the start of the training.
if [ "$node_rank" -eq 0 ]; then
    case $recipe in
    h256 | h288)
        # shellcheck disable=SC2086
        first_layers rbt6_init $ta_layers
        ;;
    rbt3) first_layers rbt3_init 0 1 2 ;;
    esac
    run "$python" my_datasets.py --data_files_json "$json_files" --data_cache_dir "$data_cache_dir" --tokenizer "$teacher" \
        --max_seq_length "$length" --preprocessing_num_workers "$workers"
fi
case $recipe in
h256 | h288)
    train_assistant --student_pretrained_weights "$saves/rbt6_init" "$@"
    train_student "$saves/rbt6_kd/gs$train_steps" "$@"
    ;;
rbt3) train_student "" --student_pretrained_weights "$saves/rbt3_init" "$@" ;;
*) train_student "$teacher" "$@" ;;
esac
echo "==== $saves/$student/gs$train_steps: load it with BertModel.from_pretrained and BertTokenizer.from_pretrained"
