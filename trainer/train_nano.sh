#!/usr/bin/env bash
# The nano world from zero, offline: corpus, tokenizer, speech, codec, data, text, then a model that speaks: a pack in out/nano/pack.
# Each step is skipped when its product exists and continues where it was when interrupted: run this again after any stop.
# To make a step anew, delete its product (the path printed beside it). Times and machines: nano/README.md.
#   bash trainer/train_nano.sh
#   SHIP=1 bash trainer/train_nano.sh         and then copy the pack over the shipped one, model/nano
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
WORK=${WORK:-out/nano}                    # everything that is not shipped
PACK=${PACK:-$WORK/pack}                  # what is: --load_from for the chat
SHIP=${SHIP:-0}
DEVICE=${DEVICE:-$($PYTHON -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
# One core of a CPU: 100 minutes, the last 30 of them for the encoder, 36 more for it alone, then 48 of both.
# On a GPU e.g. CODEC_LENGTH="--minutes 6", CODEC_ENCODER="--minutes 2 ...", CODEC_DECODER="--minutes 2 ...", with the default sizes.
CODEC_SIZE=${CODEC_SIZE:---adversarial_at 1 --batch_size 4 --frames 16 --fit_frames 50000 --threads 1 --use_compile 1}
CODEC_LENGTH=${CODEC_LENGTH:---minutes 100 --joint_at 0.315 --encoder_at 0.7}
CODEC_ENCODER=${CODEC_ENCODER:---minutes 36 --joint_at 0 --encoder_at 0 --lr 1.8e-3}
CODEC_DECODER=${CODEC_DECODER:---minutes 48 --joint_at 0 --lr 1e-3 --batch_size 8}
LIMIT=${LIMIT:-13715}                     # pairs of the corpus that are spoken: all
LLM_STEPS=${LLM_STEPS:-1300}
STEPS=${STEPS:-4500}
BATCH=${BATCH:-32}
RATE=${RATE:-1.2e-3}
DTYPE=${DTYPE:-$($PYTHON -c "from model.hardware import fast_bfloat16; print('bfloat16' if fast_bfloat16('$DEVICE') else 'float32')")}
COMPILE=${COMPILE:-1}                     # halves the time of a step, on a CPU too
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
    $PYTHON -m nano.build_data --corpus "$WORK/corpus" --speech "$WORK/speech" --limit "$LIMIT" --speech_only
    touch "$WORK/speech/.complete"
}

codec() {
    # shellcheck disable=SC2086
    $PYTHON -m nano.train_mimi --speech "$WORK/speech" --out "$WORK/codec" --device "$DEVICE" $CODEC_SIZE $CODEC_LENGTH
    tune "$WORK/codec" "$WORK/codec_encoder" "$CODEC_ENCODER"
    tune "$WORK/codec_encoder" "$WORK/codec_decoder" "$CODEC_DECODER"
    cp "$WORK/codec/targets.pt" "$PACK/mimi_targets.pt"
    ship "$WORK/codec_decoder/mimi" "$PACK/mimi"
}

tune() {  # tune FROM TO OPTIONS: go on from a codec, with its targets
    mkdir -p "$2"
    cp "$1/targets.pt" "$2/"
    # shellcheck disable=SC2086
    $PYTHON -m nano.train_mimi --speech "$WORK/speech" --out "$2" --start_from "$1/mimi" --device "$DEVICE" $CODEC_SIZE $3
}

train() {  # the Thinker has learnt its text; frozen, it keeps it, and a step costs a third less
    # shellcheck disable=SC2086
    $PYTHON -m trainer.train_sft_omni --preset nano --tokenizer_dir "$PACK" --from_weight "$WORK/model/llm_256.pth" \
        --data_path "$WORK/data/t2a_train.parquet" "$WORK/data/t2a_words.parquet" --save_dir "$WORK/model" --save_weight t2a \
        --freeze_backbone all --optimizer muon --guided_attention 0.5 --history_dropout 0.3 \
        --max_steps "$STEPS" --batch_size "$BATCH" --learning_rate "$RATE" --warmup_steps 100 \
        --max_seq_len 256 --system_share 0 --device "$DEVICE" --dtype "$DTYPE" --use_compile "$COMPILE" --num_workers "$WORKERS" \
        --save_interval 250 --from_resume 1 $EXTRA
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

step corpus    "$WORK/corpus/words.jsonl"      $PYTHON -m nano.corpus --out "$WORK/corpus"
step tokenizer "$PACK/tokenizer_config.json"   $PYTHON -m nano.tokenizer --corpus "$WORK/corpus" --out "$PACK"
step speech    "$WORK/speech/.complete"        speech
step voices    "$PACK/campplus/model.pt"       $PYTHON -m nano.train_campplus --texts "$WORK/corpus/train.jsonl" \
    --work "$WORK/campplus" --out "$PACK/campplus" --device "$DEVICE"
step codec     "$PACK/mimi/config.json"        codec
cp "$WORK/corpus/heldout.jsonl" "$PACK/heldout.jsonl"  # for python -m evals.eval_nano
step data      "$PACK/voices.pt"               $PYTHON -m nano.build_data --corpus "$WORK/corpus" --speech "$WORK/speech" \
    --codec "$WORK/codec/targets.pt" --out "$WORK/data" --voices "$PACK/voices.pt" --limit "$LIMIT" --device "$DEVICE" \
    --speaker_encoder "$PACK/campplus" --strangers 0.1
step llm       "$WORK/model/llm_256.pth"       $PYTHON -m nano.train_llm --corpus "$WORK/corpus" --tokenizer_dir "$PACK" \
    --out "$WORK/model" --work "$WORK/llm" --steps "$LLM_STEPS" --device "$DEVICE" --dtype "$DTYPE"
step train     "$PACK/sft_omni_256.pth"        train
if [ "$SHIP" = 1 ] && [ "$PACK" != model/nano ]; then
    for part in "$PACK"/*; do
        rm -rf "model/nano/$(basename "$part")"
        ship "$part" "model/nano/$(basename "$part")"
    done
fi
echo "== talk to it: python eval_omni.py --load_from $PACK"
