# The settings of the experiment, written down before its first run. run.sh reads them, report.py prints them.
# They are not changed once a result was seen. SCALE=gpu is the experiment; SCALE=dry has every stage and says nothing on the claims.

# ---- the same at both scales
teacher_layers="0 1 2 0 1 2 0 1 2 0 1 2" # the teacher's first weights: four times the layers of a shallow one (see teacher_steps)
ta_layers="0 2 4 7 9 11"    # of the teacher's twelve, as published
temperature=8               # as published
finetune_batch=32           # as published

case $SCALE in
gpu)
    # ---- models: layers/hidden/FFN/heads. Every width is half of the published model's: RoBERTa, RBT6, MiniRBT-H256, RBT4-H312 (156 made
    # 160, so that the heads are 32 wide here as well, and the FFN 600, so that the encoders agree; the published two differ by 3.6 %).
    shallow_shape=3/384/1536/12
    teacher_shape=12/384/1536/12
    ta_shape=6/384/1536/12
    narrow_deep_shape=6/128/512/4
    wide_shallow_shape=4/160/600/5
    positions=512           # as published; CMRC 2018 needs them

    # ---- data
    corpus_bytes=110000000  # all of a corpus of 100 MB
    dev_every=100           # each hundredth article is for evaluation alone: 1 MB
    length=512              # tokens a sample, as published, so that all positions are trained

    # ---- pretraining. Learning rate: ELECTRA-small's, a model of like shape and batch. Warm-up, decay, clipping: train.py's defaults.
    learning_rate=5e-4
    precision=--bf16        # not compiled: a minute for each of 16 runs would cost more than it saves
    # Teacher: eight minutes at an assumed 1,500 sequences a second, 13 % of the GPU's peak at 84 GFLOP a sequence: less than half of what
    # the speed targets ask with torch.compile (27 and 36 %), for narrow layers, without it. Twelve layers with nothing in them may learn next
    # to nothing in so few steps: three layers learn first, at 0.28 of the cost a step, and are stacked (Gong et al., ICML 2019), as in the
    # demo. The steps are fixed, whatever the rate turns out to be.
    teacher_batch=128
    shallow_steps=3000
    teacher_steps=4700
    teacher_save_steps=600
    # Students and assistants: 49 M tokens each, more than once through the corpus; all fifteen runs in seven minutes by the same assumption.
    student_batch=32
    student_steps=3000
    student_save_steps=1000
    train_jobs=4            # runs at once on the GPU: one alone waits for its kernels to be launched; 3 processes each on 16 cores
    seeds="1 2 3"           # each is a repetition from the assistant on: first weights, masks, order, dropout, and the fine-tuning

    # ---- fine-tuning: NAME:training examples:dev examples, the first of the files; sized for eight minutes for all 180 runs
    tasks="cmrc2018:2000:1000 ocnli:4000:3000 tnews:4000:3000 chnsenticorp:4000:1200"
    learning_rates="2e-5 5e-5 1e-4"
    epochs=3                # of the published 2, 3, 5 and 10 the second: all four would take six times as long
    finetune_jobs=15        # (4 students + teacher) x 3 seeds, on 16 cores
    ;;
dry)
    shallow_shape=3/48/96/3
    teacher_shape=12/48/96/3
    ta_shape=6/48/96/3
    narrow_deep_shape=6/32/64/2
    wide_shallow_shape=4/40/75/2
    positions=64
    corpus_bytes=300000
    dev_every=10
    length=64
    learning_rate=5e-4
    precision=--bf16
    teacher_batch=8
    shallow_steps=20
    teacher_steps=20
    teacher_save_steps=10
    student_batch=8
    student_steps=20
    student_save_steps=10
    train_jobs=2
    seeds="1 2"
    tasks="cmrc2018:16:8 chnsenticorp:32:16"
    learning_rates="2e-5 1e-4"
    epochs=1
    finetune_jobs=2
    ;;
*)
    echo "error: SCALE=${SCALE}: choose gpu (the experiment) or dry (every stage, tiny, on the CPU)" >&2
    exit 2
    ;;
esac

# print_settings: NAME=VALUE lines of all that decides a result.
print_settings() {
    for setting in SCALE shallow_shape teacher_shape ta_shape narrow_deep_shape wide_shallow_shape positions teacher_layers ta_layers corpus_bytes dev_every length \
        learning_rate temperature precision teacher_batch shallow_steps teacher_steps student_batch student_steps seeds tasks learning_rates epochs \
        finetune_batch train_jobs finetune_jobs; do
        eval "printf '%s=%s\n' $setting \"\$$setting\""
    done
}
