#!/usr/bin/env bash
# The full recipes: all published data, dense or mixture of experts, on one machine or many.
# Data in DATA: sft_t2a.parquet (1,636 h), sft_a2a.parquet (1,712 h of questions), sft_i2t.parquet: each a file or a folder of shards.
# Not timed yet; `python -m scripts.bench_train` estimates it for the machine it runs on (docs/training.md).
# Run it again after an interruption: finished stages end at once, the interrupted one continues where it was saved.
#   cd trainer && bash train_full.sh                            dense, one GPU
#   NPROC=8 USE_MOE=1 bash train_full.sh                        mixture of experts, eight GPUs
#   NNODES=2:4 RDZV=host0:29400 NPROC=8 bash train_full.sh      on each of two to four nodes: one may come or go
set -euo pipefail
cd "$(dirname "$0")"

NPROC=${NPROC:-1} USE_MOE=${USE_MOE:-0} EPOCHS=${EPOCHS:-1} USE_COMPILE=${USE_COMPILE:-1} DATA=${DATA:-../dataset}
SAVE_DIR=${SAVE_DIR:-../out/full} # on many nodes: a folder that all of them see
FROM=${FROM:-llm}                 # llm_768[_moe].pth in SAVE_DIR or ../out: the language model to start from
NNODES=${NNODES:-}                # empty: this machine alone
RDZV=${RDZV:-localhost:29400}     # host:port of the first node
RESTARTS=${RESTARTS:-3}           # after a crash or a change of nodes, each stage goes on from its last checkpoint
TOKENS=${TOKENS:-16384}           # positions per process and step
WORKERS=${WORKERS:-8}
EXTRA=${EXTRA:-}                  # more flags for every stage, such as --use_wandb

if [ -n "$NNODES" ]; then
    launch=(--nnodes "$NNODES" --rdzv_backend c10d --rdzv_endpoint "$RDZV" --rdzv_id minimind_o --max_restarts "$RESTARTS")
else
    launch=(--standalone --max_restarts "$RESTARTS")
fi

stage() {  # stage SAVE_WEIGHT FROM_WEIGHT DATA_FILE LEARNING_RATE MAX_SEQ_LEN MODE
    # shellcheck disable=SC2086
    torchrun "${launch[@]}" --nproc_per_node "$NPROC" train_sft_omni.py --save_weight "$1" --from_weight "$2" --data_path "$DATA/$3" \
        --learning_rate "$4" --max_seq_len "$5" --mode "$6" --epochs "$EPOCHS" --max_tokens "$TOKENS" --use_moe "$USE_MOE" \
        --use_compile "$USE_COMPILE" --num_workers "$WORKERS" --save_dir "$SAVE_DIR" --save_interval 500 --keep_last 3 \
        --eval_interval 1000 --from_resume 1 $EXTRA
}

stage sft_t2a      "$FROM"      sft_t2a.parquet 5e-4 512 all          # speak
stage sft_a2a_proj sft_t2a      sft_a2a.parquet 5e-4 768 audio_proj   # fit the ears to a model that already speaks
stage sft_a2a      sft_a2a_proj sft_a2a.parquet 2e-5 768 all          # hear and speak
stage sft_i2t_proj sft_a2a      sft_i2t.parquet 5e-4 768 vision_proj  # fit the eyes
stage sft_omni     sft_i2t_proj sft_i2t.parquet 5e-6 768 all          # see
