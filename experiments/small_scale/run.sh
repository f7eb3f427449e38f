#!/bin/sh
# Tries the three published claims at a small scale, with this project's own scripts. Run it again and it goes on where it stopped.
#
#   SCALE=gpu corpus=C vocabulary=V ltp=L tasks_dir=T sh run.sh     half an hour of one H200-class GPU
#   SCALE=dry corpus=C vocabulary=V ltp=L tasks_dir=T sh run.sh     minutes of two CPU cores; says nothing on the claims
#
#   corpus      UTF-8 text, plain or .xz, a paragraph a line, a blank line at the end of each article
#   vocabulary  BERT's vocab.txt
#   ltp         directory of an LTP model, legacy or neural
#   tasks_dir   directory with the tasks' files as distributed, in cmrc2018/ ocnli/ tnews/ chnsenticorp/
#   work        where everything goes; default pretraining/saves/small_scale/$SCALE
#   python      the interpreter; default python
#   commit      the commit that the report names; default: what git says
set -eu
here=$(cd "$(dirname "$0")" && pwd)
SCALE=${SCALE:-}
. "$here/settings.sh"

# absolute PATH: seen from where this script was called.
absolute() {
    case $1 in
    /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
    esac
}

for name in corpus vocabulary ltp tasks_dir; do
    eval "value=\${$name:-}"
    if [ -z "$value" ]; then
        echo "error: run.sh: $name is not set; SCALE=$SCALE corpus=... vocabulary=... ltp=... tasks_dir=... sh run.sh" >&2
        exit 2
    fi
    eval "$name=\$(absolute \"\$value\")"
done
work=$(absolute "${work:-$here/../../pretraining/saves/small_scale/$SCALE}")
python=${python:-python}
case $python in
*/*) python=$(absolute "$python") ;;
esac
report=$work/report
[ "$SCALE" = dry ] || report=$here
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # several processes share the cores
cd "$here/../../pretraining"

mkdir -p "$work/done" "$work/logs"
if [ ! -e "$work/settings.txt" ]; then
    print_settings >"$work/settings.new"
    mv "$work/settings.new" "$work/settings.txt"
elif ! print_settings | cmp -s - "$work/settings.txt"; then
    echo "error: $work: holds an experiment with other settings (settings.txt); give another work directory or remove it" >&2
    exit 2
fi
for name in work corpus vocabulary ltp tasks_dir python here; do # by which report.py shortens the commands
    eval "printf '%s=%s\n' $name \"\$$name\""
done >"$work/paths.txt"

# ---------------------------------------------------------------- jobs

# note EVENT NAME: a line of history.tsv, which tells report.py what was begun, done, failed and repeated, and when.
note() {
    printf '%s\t%s\t%s\n' "$(date +%s)" "$1" "$2" >>"$work/history.tsv"
}

running= # "pid:name pid:name ", the oldest first
stage=
begun=

# stage NAME JOBS: the jobs from here on are a stage of this name, so many of them at once.
stage() {
    stage=$1 jobs=$2 begun=
}

# start NAME COMMAND...: runs a job in the background, its output in logs/NAME.log; nothing if it is done already.
start() {
    job=$1
    shift
    [ ! -e "$work/done/$job" ] || return 0
    # shellcheck disable=SC2086
    while [ "$(set -- $running && echo $#)" -ge "$jobs" ]; do
        await_oldest
    done
    if [ -z "$begun" ]; then
        begun=yes
        note begin "stage $stage"
        echo "$(date +%T) ==== $stage"
    fi
    printf '%s\t%s\n' "$job" "$*" >>"$work/commands.tsv"
    note begin "$job"
    echo "$(date +%T) $job begins; its progress: tail -f $work/logs/$job.log"
    "$@" >>"$work/logs/$job.log" 2>&1 &
    running="$running$!:$job "
}

# await_oldest: waits for the job begun first; a failed one ends the script.
await_oldest() {
    oldest=${running%% *} status=0
    wait "${oldest%%:*}" || status=$?
    running=${running#* } job_ended=${oldest#*:}
    if [ "$status" -ne 0 ]; then
        note failed "$job_ended"
        echo "error: $job_ended ended with status $status: $(tail -n 1 "$work/logs/$job_ended.log")" >&2
        echo "its log: $work/logs/$job_ended.log; when it is mended, the same command goes on" >&2
        stop_all
        exit "$status"
    fi
    : >"$work/done/$job_ended"
    note done "$job_ended"
    echo "$(date +%T) $job_ended is done"
}

await_all() {
    while [ -n "$running" ]; do
        await_oldest
    done
}

# end_stage: waits for the stage's jobs.
end_stage() {
    await_all
    [ -z "$begun" ] || note done "stage $stage"
}

# stop_all: training jobs write a checkpoint before they end. Twice, for a job that is only just being started may miss a signal.
stop_all() {
    for pause in 1 0; do
        for entry in $running; do
            kill -TERM "${entry%%:*}" 2>/dev/null || true
        done
        sleep "$pause"
    done
    for entry in $running; do
        wait "${entry%%:*}" || true
    done
}

trap 'stop_all; exit 143' TERM
trap 'stop_all; exit 130' INT

# ---------------------------------------------------------------- what the jobs are

# train NAME SHAPE BATCH STEPS SAVE_STEPS SEED ARGUMENTS...: one run of train.py, with its evaluation on the dev articles.
train() {
    name=$1 shape=$2 batch=$3 steps=$4 save_steps=$5 seed=$6
    shift 6
    start "$name" "$python" train.py --do_train --do_eval --resume_from_checkpoint latest \
        --student_config "$work/data/configs/$shape.json" --output_dir "$work/runs/$name" \
        --data_files_json "$work/data/data.json" --data_cache_dir "$work/data/shards" --max_seq_length "$length" \
        --num_train_steps "$steps" --ckpt_steps "$save_steps" --keep_checkpoints 1 --train_batch_size "$batch" \
        --learning_rate "$learning_rate" --temperature "$temperature" --random_seed "$seed" $precision "$@"
}

# student NAME SHAPE ARGUMENTS...: the same budget for every student.
student() {
    name=$1 shape=$2
    shift 2
    train "$name" "$shape" "$student_batch" "$student_steps" "$student_save_steps" "$seed" "$@"
}

# first_layers NAME MODEL LAYERS: first weights out of some of a model's layers, before anything else goes on.
first_layers() {
    # shellcheck disable=SC2086
    start "$1" "$python" scripts/init_checkpoint_TA.py --model_name_or_path "$2" --dump_checkpoint "$work/runs/$1" --layers $3
    await_all
}

# finetune NAME MODEL: one seed of one model on all tasks with all learning rates.
finetune() {
    # shellcheck disable=SC2086
    start "finetune-$1" "$python" "$here/finetune.py" --model_name_or_path "$2" --tasks_dir "$tasks_dir" --tasks $tasks \
        --learning_rates $learning_rates --num_train_epochs "$epochs" --seed "$seed" --per_device_train_batch_size "$finetune_batch" \
        $precision --output_dir "$work/finetuning/$1"
}

# hidden SHAPE: the hidden size in layers/hidden/FFN/heads.
hidden() {
    echo "$1" | cut -d/ -f2
}

teacher=$work/runs/teacher/gs$teacher_steps
large=$(hidden "$teacher_shape") narrow=$(hidden "$narrow_deep_shape") wide=$(hidden "$wide_shallow_shape")
note "commit ${commit:-$(git -C "$here" describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)}" "run.sh"

# ---------------------------------------------------------------- 1. data

stage data 1
# shellcheck disable=SC2086
start prepare "$python" "$here/prepare.py" --scale "$SCALE" --corpus "$corpus" --corpus_bytes "$corpus_bytes" --dev_every "$dev_every" \
    --vocabulary "$vocabulary" --ltp "$ltp" --tasks_dir "$tasks_dir" --tasks $tasks --positions "$positions" --length "$length" \
    --shapes "shallow=$shallow_shape" "teacher=$teacher_shape" "ta=$ta_shape" "narrow_deep=$narrow_deep_shape" "wide_shallow=$wide_shallow_shape" \
    --output_dir "$work/data"
end_stage

stage "whole-word references" 1
start references "$python" run_chinese_ref.py --data_files_json "$work/data/data.json" --ltp "$ltp" --bert "$work/data/vocabulary"
end_stage

stage shards 1
start shards "$python" my_datasets.py --data_files_json "$work/data/data.json" --data_cache_dir "$work/data/shards" \
    --tokenizer "$work/data/vocabulary" --max_seq_length "$length"
end_stage

# ---------------------------------------------------------------- 2. teacher and assistant

stage "teacher, its first layers" 1
train shallow shallow "$teacher_batch" "$shallow_steps" "$teacher_save_steps" 0 --tokenizer "$work/data/vocabulary"
first_layers teacher_init "$work/runs/shallow/gs$shallow_steps" "$teacher_layers"
end_stage

stage teacher 1
train teacher teacher "$teacher_batch" "$teacher_steps" "$teacher_save_steps" 0 --tokenizer "$work/data/vocabulary" \
    --student_pretrained_weights "$work/runs/teacher_init"
end_stage

stage "assistant and one-stage students" "$train_jobs"
first_layers ta_init "$teacher" "$ta_layers"
for seed in $seeds; do
    student "ta-$seed" ta --teacher_name_or_path "$teacher" --student_pretrained_weights "$work/runs/ta_init" --matches L6_hidden_mse
done

# ---------------------------------------------------------------- 3. students

for seed in $seeds; do
    student "one_stage-$seed" narrow_deep --teacher_name_or_path "$teacher" --matches "L6h${narrow}_L12h${large}_hidden_mse"
done
for seed in $seeds; do
    student "wide_shallow-$seed" wide_shallow --teacher_name_or_path "$teacher" --matches "L4h${wide}_L12h${large}_hidden_mse"
done
for seed in $seeds; do
    student "no_teacher-$seed" narrow_deep --tokenizer "$work/data/vocabulary"
done
end_stage

stage "two-stage students" "$train_jobs"
for seed in $seeds; do
    student "two_stage-$seed" narrow_deep --teacher_name_or_path "$work/runs/ta-$seed/gs$student_steps" \
        --matches "L6h${narrow}_L6h${large}_hidden_mse"
done
end_stage

# ---------------------------------------------------------------- 4. fine-tuning

stage fine-tuning "$finetune_jobs"
for seed in $seeds; do
    finetune "teacher-$seed" "$teacher"
    for kind in two_stage one_stage wide_shallow no_teacher; do
        finetune "$kind-$seed" "$work/runs/$kind-$seed/gs$student_steps"
    done
done
end_stage

# ---------------------------------------------------------------- 5. report

"$python" "$here/report.py" --work "$work" --output_dir "$report"
