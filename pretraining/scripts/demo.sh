#!/bin/sh
# Runs the pipeline on the sample corpus with small models: trains a segmenter and a teacher, makes reference files and shards,
# runs both stages of distill.sh, and writes a report. Writes only below saves/demo/.
set -eu
cd "$(dirname "$0")/.."
python=${python:-python}
demo=./saves/demo
# Variables of distill.sh that the user's shell may have; the demo sets its own.
unset teacher json_files data_cache_dir saves ngpu nnodes node_rank master_addr master_port train_steps save_steps global_batch forward_batch \
    length lr temperature seed precision compile workers ta_config ta_layers ta_matches student_config student_matches

"$python" -c 'import pretraining' 2>/dev/null || {
    echo "error: demo.sh: $python does not find this project; run pip install -e . in its directory, or make demo" >&2
    exit 2
}

[ -f $demo/ltp/config.json ] || # a second training finds the same words, but its file has another checksum
    "$python" scripts/train_segmenter.py --train dataset/segmented/segmented.txt --dev dataset/segmented/segmented_dev.txt --output_dir $demo/ltp
"$python" scripts/make_demo_models.py --output_dir $demo
"$python" run_chinese_ref.py --data_files_json $demo/data.json --ltp $demo/ltp --bert $demo/vocabulary
"$python" my_datasets.py --data_files_json $demo/data.json --data_cache_dir $demo/shards --tokenizer $demo/vocabulary --max_seq_length 64

# masked_lm NAME STEPS LEARNING_RATE ARGUMENTS...: training without a teacher
masked_lm() {
    name=$1 steps=$2 learning_rate=$3
    shift 3
    "$python" train.py --do_train --resume_from_checkpoint latest --output_dir $demo/"$name" --tokenizer $demo/vocabulary \
        --data_files_json $demo/data.json --data_cache_dir $demo/shards --max_seq_length 64 --train_batch_size 8 \
        --num_train_steps "$steps" --ckpt_steps "$steps" --learning_rate "$learning_rate" "$@"
}
# Twelve layers learn nothing in so few steps, two layers do. Six copies of them are good first weights for twelve (Gong et al., ICML 2019).
masked_lm shallow 2000 2e-3 --student_config $demo/configs/shallow.json
"$python" scripts/init_checkpoint_TA.py --model_name_or_path $demo/shallow/gs2000 --dump_checkpoint $demo/teacher_init --layers 0 1 0 1 0 1 0 1 0 1 0 1
masked_lm teacher 200 1e-3 --student_config $demo/configs/teacher.json --student_pretrained_weights $demo/teacher_init

sh distill.sh h256 python="$python" teacher=$demo/teacher/gs200 json_files=$demo/data.json data_cache_dir=$demo/shards saves=$demo ngpu=1 nnodes=1 \
    precision=fp32 length=64 train_steps=600 save_steps=200 global_batch=8 lr=1e-3 temperature=8 seed=1337 ta_config=$demo/configs/rbt6.json \
    student_config=$demo/configs/minirbt.json student_matches=L6h64_L6h96_hidden_mse

"$python" scripts/report.py --models teacher=$demo/teacher/gs200 "RBT6 (KD)=$demo/rbt6_kd/gs600" MiniRBT=$demo/minirbt_h256/gs600 \
    --runs teacher=$demo/teacher "RBT6 (KD)=$demo/rbt6_kd" MiniRBT=$demo/minirbt_h256 \
    --data_files_json $demo/data.json --data_cache_dir $demo/shards --max_seq_length 64 --output_dir $demo/report
