#!/usr/bin/env bash
# The mini recipe: a MiniMind language model (out/llm_768.pth) learns to speak, to hear, then to see.
# The original's time for it is about 2 h on one RTX 3090 (T2A 60 min, audio projector 15 min, A2A 15 min).
# Run it again after an interruption: finished stages end at once, the interrupted one continues where it was saved.
#   cd trainer && bash train.sh                     one GPU
#   NPROC=4 BATCH=16 bash train.sh                  four GPUs, rows per GPU
#   SAVE_DIR=../out/second USE_MOE=1 bash train.sh  another run, mixture of experts
set -euo pipefail
cd "$(dirname "$0")"

NPROC=${NPROC:-1}             # processes (GPUs) on this machine
BATCH=${BATCH:-32}            # rows per process
EPOCHS=${EPOCHS:-1}
USE_MOE=${USE_MOE:-0}
USE_COMPILE=${USE_COMPILE:-1}
DATA=${DATA:-../dataset}      # sft_t2a_mini.parquet, sft_a2a_mini.parquet, sft_i2t.parquet
SAVE_DIR=${SAVE_DIR:-../out}
FROM=${FROM:-llm}             # <SAVE_DIR>/llm_768[_moe].pth: the language model to start from
EXTRA=${EXTRA:-}              # more flags for every stage, such as --use_wandb

stage() {  # stage SAVE_WEIGHT FROM_WEIGHT DATA_FILE LEARNING_RATE MAX_SEQ_LEN MODE
    # shellcheck disable=SC2086
    torchrun --standalone --nproc_per_node "$NPROC" train_sft_omni.py --save_weight "$1" --from_weight "$2" --data_path "$DATA/$3" \
        --learning_rate "$4" --max_seq_len "$5" --mode "$6" --epochs "$EPOCHS" --batch_size "$BATCH" --use_moe "$USE_MOE" \
        --use_compile "$USE_COMPILE" --save_dir "$SAVE_DIR" --from_resume 1 $EXTRA
}

stage sft_t2a      "$FROM"      sft_t2a_mini.parquet 5e-4 512 all          # speak
stage sft_a2a_proj sft_t2a      sft_a2a_mini.parquet 5e-4 768 audio_proj   # fit the ears to a model that already speaks
stage sft_a2a      sft_a2a_proj sft_a2a_mini.parquet 2e-5 768 all          # hear and speak
stage sft_i2t_proj sft_a2a      sft_i2t.parquet      5e-4 768 vision_proj  # fit the eyes
stage sft_omni     sft_i2t_proj sft_i2t.parquet      5e-6 768 all          # see
