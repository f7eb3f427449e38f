#!/bin/sh
# The whole pipeline on the sample corpus, with small models: a segmenter and a teacher from nothing, reference files, shards,
# both stages of distill.sh, a report. Everything it writes is under saves/demo/.
set -eu
cd "$(dirname "$0")/.."
python=${python:-python}
demo=./saves/demo

"$python" scripts/train_segmenter.py --train dataset/segmented/segmented.txt --dev dataset/segmented/segmented_dev.txt --output_dir $demo/ltp
"$python" scripts/make_demo_models.py --output_dir $demo
"$python" run_chinese_ref.py --data_files_json $demo/data.json --ltp $demo/ltp --bert $demo/vocabulary
"$python" my_datasets.py --data_files_json $demo/data.json --data_cache_dir $demo/shards --tokenizer $demo/vocabulary --max_seq_length 128
"$python" train.py --do_train --resume_from_checkpoint latest --student_config $demo/configs/teacher.json --tokenizer $demo/vocabulary \
    --data_files_json $demo/data.json --data_cache_dir $demo/shards --max_seq_length 128 \
    --num_train_steps 600 --ckpt_steps 200 --train_batch_size 8 --learning_rate 1e-3 --output_dir $demo/teacher

python=$python teacher=$demo/teacher/gs600 json_files=$demo/data.json data_cache_dir=$demo/shards saves=$demo ngpu=1 nnodes=1 precision=fp32 \
    length=128 train_steps=300 save_steps=100 global_batch=8 lr=1e-3 temperature=8 ta_config=$demo/configs/rbt6.json \
    student_config=$demo/configs/minirbt.json student_matches=L6h64_L6h96_hidden_mse sh distill.sh h256

"$python" scripts/report.py --models teacher=$demo/teacher/gs600 "RBT6 (KD)=$demo/rbt6_kd/gs300" MiniRBT=$demo/minirbt_h256/gs300 \
    --runs teacher=$demo/teacher "RBT6 (KD)=$demo/rbt6_kd" MiniRBT=$demo/minirbt_h256 \
    --data_files_json $demo/data.json --data_cache_dir $demo/shards --max_seq_length 128 --output_dir $demo/report
