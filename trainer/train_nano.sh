#!/usr/bin/env bash
# The nano world from zero, offline: corpus -> tokenizer -> speech -> codec -> data -> a model that speaks, a pack in out/nano/pack.
# Each step is skipped when its product exists and continues where it was when interrupted: run this again after any stop.
# To make a step anew, delete its product (the path printed beside it). Times and machines: nano/README.md.
#   bash trainer/train_nano.sh
#   SHIP=1 bash trainer/train_nano.sh         and then copy the pack over the shipped one, model/nano
#   DEVICE=cpu DTYPE=bfloat16 CODEC_LENGTH="--batch_size 8 --frames 8 --steps 12000" EPOCHS=2 BATCH=32 bash trainer/train_nano.sh
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
WORK=${WORK:-out/nano}                    # everything that is not shipped
PACK=${PACK:-$WORK/pack}                  # what is: --load_from for the chat
SHIP=${SHIP:-0}
DEVICE=${DEVICE:-$($PYTHON -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
CODEC_LENGTH=${CODEC_LENGTH:---minutes 8} # how long the codec learns, and its sizes
EPOCHS=${EPOCHS:-20}
BATCH=${BATCH:-64}
RATE=${RATE:-1e-3}
DTYPE=${DTYPE:-$([ "$DEVICE" = cpu ] && echo float32 || echo bfloat16)}
COMPILE=${COMPILE:-$([ "$DEVICE" = cpu ] && echo 0 || echo 1)}
WORKERS=${WORKERS:-$([ "$DEVICE" = cpu ] && echo 1 || echo 12)}
EXTRA=${EXTRA:-}                          # more flags for the training

step() {  # step NAME PRODUCT COMMAND...
    local name=$1 product=$2
    shift 2
    if [ -e "$product" ]; then
        echo "== $name: done ($product)"
    else
        echo "== $name"
        "$@"
    fi
}

speech() {
    $PYTHON -m nano.speech --texts "$WORK/corpus/train.jsonl" --out "$WORK/speech"
    touch "$WORK/speech/.complete"
}

codec() {
    # shellcheck disable=SC2086
    $PYTHON -m nano.train_mimi --speech "$WORK/speech" --out "$WORK/codec" --device "$DEVICE" $CODEC_LENGTH
    ship "$WORK/codec/mimi" "$PACK/mimi"
}

train() {
    # shellcheck disable=SC2086
    $PYTHON -m trainer.train_sft_omni --preset nano --tokenizer_dir "$PACK" --from_weight none --data_path "$WORK/data/t2a_train.parquet" \
        --save_dir "$WORK/model" --save_weight t2a --epochs "$EPOCHS" --batch_size "$BATCH" --learning_rate "$RATE" --warmup_steps 200 \
        --max_seq_len 384 --device "$DEVICE" --dtype "$DTYPE" --use_compile "$COMPILE" --num_workers "$WORKERS" \
        --save_interval 500 --from_resume 1 $EXTRA
    finished "$WORK/model/t2a_256_resume.pth"  # stopped by SIGTERM it has saved, but is not to be used yet
    ship "$WORK/model/t2a_256.json" "$PACK/sft_omni_256.json"
    ship "$WORK/model/t2a_256.pth" "$PACK/sft_omni_256.pth"
}

finished() {
    $PYTHON -c 'import sys
from model.checkpoint import load_weights
state = load_weights(sys.argv[1])
sys.exit(state["step"] < state["total_steps"])' "$1" || { echo "$1: stopped before the end; run this again to continue"; exit 1; }
}

ship() {  # copy as a whole or not at all
    mkdir -p "$(dirname "$2")"
    rm -rf "$2.part"
    cp -r "$1" "$2.part"
    mv "$2.part" "$2"
}

step corpus    "$WORK/corpus/heldout.jsonl"    $PYTHON -m nano.corpus --out "$WORK/corpus"
step tokenizer "$PACK/tokenizer_config.json"   $PYTHON -m nano.tokenizer --corpus "$WORK/corpus" --out "$PACK"
step speech    "$WORK/speech/.complete"        speech
step codec     "$PACK/mimi/config.json"        codec
step data      "$PACK/voices.pt"               $PYTHON -m nano.build_data --corpus "$WORK/corpus" --speech "$WORK/speech" \
    --codec "$PACK/mimi" --out "$WORK/data" --voices "$PACK/voices.pt" --device "$DEVICE"
step train     "$PACK/sft_omni_256.pth"        train
if [ "$SHIP" = 1 ] && [ "$PACK" != model/nano ]; then
    for part in "$PACK"/*; do
        rm -rf "model/nano/$(basename "$part")"
        ship "$part" "model/nano/$(basename "$part")"
    done
fi
echo "== talk to it: python eval_omni.py --load_from $PACK"
