#!/usr/bin/env bash
# The nano world from zero, offline: corpus, tokenizer, speech, codec, ears, eyes, text, then a model that hears, sees and speaks: a pack
# in out/nano/pack, and a table of what it can and what each step took. It takes some six hours on two CPU cores.
# Each step is skipped when its product exists and continues where it was when interrupted: run this again after any stop.
# To make a step anew, delete its product (the path printed beside it) and, of a training, the folder of its checkpoints.
# What was tried and why: nano/HISTORY.md.
#   bash trainer/train_nano.sh
#   SHIP=1 bash trainer/train_nano.sh         and then copy the pack over the shipped one, model/nano
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
WORK=${WORK:-out/nano}                    # everything that is not shipped
PACK=${PACK:-$WORK/pack}                  # what is: --load_from for the chat
SHIP=${SHIP:-0}
DEVICE=${DEVICE:-$($PYTHON -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
CORES=${CORES:-$(nproc)}
COMPILE=${COMPILE:-1}                     # halves the time of a step, on a CPU too
DTYPE=${DTYPE:-$($PYTHON -c "from model.hardware import fast_bfloat16; print('bfloat16' if fast_bfloat16('$DEVICE') else 'float32')")}
# Codec and eyes learn on one core beside the steps before the Thinker's.
CODEC_SIZE=${CODEC_SIZE:---batch_size 4 --frames 16 --fit_frames 50000 --threads 1 --use_compile $COMPILE}
CODEC_LENGTH=${CODEC_LENGTH:---minutes 75 --joint_at 0.36 --encoder_at 0.75}
CODEC_TUNE=${CODEC_TUNE:---minutes 30 --joint_at 0 --lr 1e-3 --batch_size 8}
CODEC_CLIPS=${CODEC_CLIPS:-1800}          # sentences of the corpus that it learns from, by all three voices
SPEAKERS=${SPEAKERS:---steps 1000}
LLM_STEPS=${LLM_STEPS:-1300}
EYES=${EYES:---steps 1600 --batch_size 64 --questions 2 --lr 2e-3}
EARS=${EARS:---steps 2000 --batch_size 64 --clean 0.4 --clips 100}
TURNS=${TURNS:---steps 800}
THINK_STEPS=${THINK_STEPS:-4000}
TALK_STEPS=${TALK_STEPS:-5800}
PROCESSES=${PROCESSES:-$([ "$DEVICE" = cpu ] && echo "$CORES" || echo 1)}  # of the trainings; one a core
# rows of a step, by all processes: few teach more in an hour on a CPU
THINK_ROWS=${THINK_ROWS:-$([ "$DEVICE" = cpu ] && echo 32 || echo 64)}
TALK_ROWS=${TALK_ROWS:-$([ "$DEVICE" = cpu ] && echo 16 || echo 64)}
RATE=${RATE:-1.2e-3}
# of the Talker's training; the first codebooks carry the words
TALKER=${TALKER:---guided_attention 0.5 --history_dropout 0.3 --codebook_weights 4 2 1.5 1 0.5 0.5 0.5 0.5 --augment_share 0.5}
WORKERS=${WORKERS:-$([ "$DEVICE" = cpu ] && echo 0 || echo 12)}
EXTRA=${EXTRA:-}                          # more flags for the trainings
SPOKEN=${SPOKEN:---others 0.15 --strangers 0.08 --sentences 9000 --words 2000}  # sizes of the sets: what the Talker says,
TALKS=${TALKS:---askings 1 --conversations 2000 --typed 20000 --questions 60000 --spoken 3000 --heldout 120}  # what is asked,
FURTHER=${FURTHER:---sentences 4000 --foreign 0.5}  # and further questions, so many of them by festival and espeak-ng
HEARD=${HEARD:-4000}                      # rows of each set of spoken questions that are written down
LENT=${LENT:---talks 3500}
N=${N:-60}                                # held-out items of each figure in the table

for program in flite festival espeak-ng; do  # now, not after hours
    command -v "$program" >/dev/null || { echo "the $program program is missing: see nano/README.md"; exit 2; }
done
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((CORES > 3 ? CORES / 2 : 1))}  # two things are done at a time

STEP= GROUP= BESIDE=
trap leave EXIT

step() {  # step NAME PRODUCT COMMAND...
    local name=$1 product=$2
    shift 2
    if [ -e "$product" ]; then
        echo "== $name: done ($product)"
        return
    fi
    echo "== $name"
    STEP=$name BEGAN=$(date +%s)
    set -m  # a process group of its own, so that whatever ends this script ends the step, too
    ("$@") &
    GROUP=$!
    set +m
    wait "$GROUP"
    GROUP=
    [ -e "$product" ] || { echo "$name ended without making $product"; exit 1; }
    spent done
}

leave() {
    spent stopped
    for group in $GROUP $BESIDE; do
        kill -- "-$group" 2>/dev/null || true
        wait "$group" || true
        while kill -0 -- "-$group" 2>/dev/null; do sleep 0.2; done  # a training saves itself first
    done
}

spent() {  # a line for nano.summary: step, from when, until when, how it ended
    [ -z "$STEP" ] || printf '%s\t%s\t%s\t%s\n' "$STEP" "$BEGAN" "$(date +%s)" "$1" >> "$WORK/times.tsv"
    STEP=
}

beside() {  # beside COMMAND...: while the script goes on
    set -m
    (trap leave EXIT; BESIDE=; "$@") > "$WORK/beside.log" 2>&1 &
    BESIDE=$!
    set +m
}

await() {
    echo "== waiting for codec and eyes ($WORK/beside.log)"
    wait "$BESIDE" || { BESIDE=; echo "codec or eyes failed: see $WORK/beside.log"; exit 1; }
    BESIDE=
}

speech() {  # what the codec learns from
    $PYTHON -m nano.speech --texts "$WORK/corpus/train.jsonl" --limit "$CODEC_CLIPS" --out "$WORK/speech"
    touch "$WORK/speech/.complete"
}

mimi() {  # mimi OUT OPTIONS...
    local out=$1
    shift
    # shellcheck disable=SC2086
    $PYTHON -m nano.train_mimi --speech "$WORK/speech" --out "$out" --device "$DEVICE" $CODEC_SIZE "$@"
}

codec() {
    # shellcheck disable=SC2086
    mimi "$WORK/codec" $CODEC_LENGTH
    mkdir -p "$WORK/codec_tuned"
    cp "$WORK/codec/targets.pt" "$WORK/codec_tuned/"
    # shellcheck disable=SC2086
    mimi "$WORK/codec_tuned" $CODEC_TUNE --start_from "$WORK/codec/mimi"
    cp "$WORK/codec/targets.pt" "$PACK/mimi_targets.pt"
    ship "$WORK/codec_tuned/mimi" "$PACK/mimi"
}

codec_and_eyes() {
    step codec "$PACK/mimi/config.json" codec
    # shellcheck disable=SC2086
    step eyes "$PACK/siglip2-base-p32-256-ve/model.safetensors" $PYTHON -m nano.train_siglip --device "$DEVICE" --workers "$WORKERS" \
        --use_compile "$COMPILE" --work "$WORK/siglip" --out "$PACK/siglip2-base-p32-256-ve" $EYES
}

sets() {  # sets NAME... OPTIONS: data by nano.build_sets
    $PYTHON -m nano.build_sets --corpus "$WORK/corpus" --codec "$WORK/codec/targets.pt" --tokenizer "$PACK" --out "$WORK/data" \
        --workers $((BESIDE && CORES > 1 ? CORES - 1 : CORES)) "$@"
}

examples() {
    $PYTHON -m nano.build_examples --corpus "$WORK/corpus" --out "$WORK/examples"
    ship "$WORK/examples" "$PACK/examples"
}

ears() {  # with them the Thinker's audio projector learns to spell what they hear
    # shellcheck disable=SC2086
    $PYTHON -m nano.train_sensevoice --corpus "$WORK/corpus" --device "$DEVICE" --speech "$WORK/speech_heard" --work "$WORK/sensevoice" \
        --out "$WORK/sensevoice/SenseVoiceSmall" --questions "$WORK"/data/{a2a,more,multi}_train \
        --speller "$WORK/model/llm_256.pth" --speller_out "$WORK/model/ears_256.pth" --tokenizer_dir "$PACK" $EARS
    $PYTHON -m nano.train_language --corpus "$WORK/corpus" --ear "$WORK/sensevoice/SenseVoiceSmall"
    ship "$WORK/sensevoice/SenseVoiceSmall" "$PACK/SenseVoiceSmall"
}

turns() {  # a turn looks the same wherever it stands in a talk
    local sets=(a2a_train more_train facts_train facts_train typed_train)
    # shellcheck disable=SC2086
    $PYTHON -m nano.train_turns --from_weight "$WORK/model/ears_256.pth" --out "$WORK/model/turns_256.pth" --work "$WORK/turns" \
        --data_path "${sets[@]/#/$WORK/data/}" --pack "$PACK" --use_compile "$COMPILE" $TURNS
}

stage() {  # stage NAME FROM ROWS OPTIONS DATA...: one run of the trainer, $WORK/model/FROM_256.pth -> NAME_256.pth
    local name=$1 from=$2 batch=$((PROCESSES < $3 / 4 ? $3 / PROCESSES : 4)) options=$4
    shift 4
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 $PYTHON -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" -m trainer.train_sft_omni \
        --preset nano --tokenizer_dir "$PACK" --from_weight "$WORK/model/${from}_256.pth" \
        --data_path "${@/#/$WORK/data/}" --save_dir "$WORK/model" --save_weight "$name" --optimizer muon $options \
        --audio_encoder_dir "$PACK/SenseVoiceSmall" --vision_dir "$PACK/siglip2-base-p32-256-ve" \
        --batch_size "$batch" --learning_rate "$RATE" --max_seq_len 448 --system_share 0 --device "$DEVICE" --dtype "$DTYPE" \
        --use_compile "$COMPILE" --num_workers "$WORKERS" --save_interval 200 --keep_last 4 --from_resume 1 --warmup_steps 100 \
        --log_interval 5 $EXTRA  # a stop is agreed on when it logs, and torchrun waits half a minute for it
    finished "$WORK/model/${name}_256_resume.pth"  # stopped by SIGTERM it has saved, but is not to be used yet
    $PYTHON -m trainer.average_weights "$WORK/model/${name}"_256_resume_step*.pth --out "$WORK/model/${name}_mean_256.pth"
}

finished() {
    $PYTHON -c 'import sys
from model.checkpoint import load_weights
state = load_weights(sys.argv[1])
sys.exit(state["step"] < state["total_steps"])' "$1" || { echo "$1: stopped before the end; run this again to continue"; exit 1; }
}

examine() {
    $PYTHON -m evals.eval_nano --pack "$PACK" --n "$N" --output_dir "$WORK/eval" &
    local speech=$!
    $PYTHON -m evals.eval_senses --pack "$PACK" --data "$WORK/data" --n "$N" --output "$WORK/eval/senses.json"
    wait $speech
    touch "$WORK/eval/.complete"
}

ship() {  # copy as a whole or not at all
    mkdir -p "$(dirname "$2")"
    rm -rf "$2.part"
    cp -r "$1" "$2.part"
    rm -rf "$2"
    mv "$2.part" "$2"
}

mkdir -p "$WORK"
exec 9> "$WORK/.lock"  # held by whatever this script starts, too: after a kill -9 codec or eyes may still be learning
flock -n 9 || { echo "another run of this script, or a step it left behind, is at work in $WORK"; exit 1; }
step corpus    "$WORK/corpus/questions.jsonl"  $PYTHON -m nano.corpus --out "$WORK/corpus"
step tokenizer "$PACK/tokenizer_config.json"   $PYTHON -m nano.tokenizer --corpus "$WORK/corpus" --out "$PACK"
step speech    "$WORK/speech/.complete"        speech
# A code is defined by the books: nothing but the loudspeaker waits for the networks that learn to use them.
# shellcheck disable=SC2086
step books     "$WORK/codec/targets.pt"        mimi "$WORK/codec" $CODEC_LENGTH --books_only
beside codec_and_eyes

# shellcheck disable=SC2086
step speakers  "$PACK/campplus/configuration.json" $PYTHON -m nano.train_campplus --texts "$WORK/corpus/train.jsonl" \
    --work "$WORK/campplus" --out "$PACK/campplus" --device "$DEVICE" $SPEAKERS
step voices    "$PACK/voices.pt"               $PYTHON -m nano.voices --codec "$WORK/codec/targets.pt" \
    --speaker_encoder "$PACK/campplus" --out "$PACK/voices.pt" --device "$DEVICE"
step llm       "$WORK/model/llm_256.pth"       $PYTHON -m nano.train_llm --corpus "$WORK/corpus" --tokenizer_dir "$PACK" \
    --out "$WORK/model" --work "$WORK/llm" --steps "$LLM_STEPS" --device "$DEVICE" --dtype "$DTYPE" \
    --use_compile "$COMPILE"
# conversations with spoken questions and pictures; the replies are text alone, until lend_speech
unspoken=(--unspoken --speaker_encoder none)
# shellcheck disable=SC2086
step asked     "$WORK/data/told_heldout/manifest.json" sets a2a multi i2t "${unspoken[@]}" $TALKS
# shellcheck disable=SC2086
step further   "$WORK/data/facts_train/manifest.json" sets more "${unspoken[@]}" $FURTHER
step examples  "$PACK/examples"                examples
step ears      "$PACK/SenseVoiceSmall/model.pt" ears
step turns     "$WORK/model/turns_256.pth"     turns
# what the ear writes down of spoken questions, mistakes included: that is what the Thinker will read
step heard     "$WORK/data/heard_train/multi_train.parquet" $PYTHON -m nano.write_down "$WORK"/data/{a2a,more,mix,multi}_train \
    --ear "$PACK/SenseVoiceSmall" --limit "$HEARD" --out "$WORK/data/heard_train"
await

# From here on every step takes all cores. The released recipe trains a projector and then everything, for each sense. Here the ear has
# brought its projector along; that of the eyes and the Thinker above the bridge learn from the text of the replies alone: a step costs a
# third, and the Talker, which reads the Thinker below, then learns from one that no longer changes.
step think     "$WORK/model/think_mean_256.pth" stage think turns "$THINK_ROWS" "--mode thinker --spelling 0.2 \
    --question_mix 0.25 0.3 0.05 0.4 --augment_share 0.3 --max_steps $THINK_STEPS" i2t_train i2t_train typed_train facts_train \
    heard_train a2a_train more_train multi_train mix_train
# shellcheck disable=SC2086
step spoken    "$WORK/data/t2a_heldout/manifest.json" sets t2a --speaker_encoder "$PACK/campplus" $SPOKEN
# the Talker has to stand behind pictures, sounds and long talks, too, or it would not end there, or not begin
# shellcheck disable=SC2086
step lent      "$WORK/data/lent_train/lent.parquet" $PYTHON -m nano.lend_speech "$WORK"/data/{a2a,multi,mix,i2t}_train \
    --speech "$WORK"/data/t2a_{train,sentences} --out "$WORK/data/lent_train" $LENT
step talk      "$WORK/model/talk_mean_256.pth" stage talk think_mean "$TALK_ROWS" "--mode talker $TALKER --max_steps $TALK_STEPS" \
    lent_train t2a_train t2a_sentences t2a_mixed t2a_words
cp "$WORK/model/talk_mean_256.pth" "$PACK/sft_omni_256.pth"
cp "$WORK/model/talk_mean_256.json" "$PACK/sft_omni_256.json"
cp "$WORK/corpus/heldout.jsonl" "$PACK/heldout.jsonl"  # for python -m evals.eval_nano
# The nano model knows one right answer to most questions, and reads what its ear writes of spoken ones.
echo '{"temperature": 0.1, "transcript": 2}' > "$PACK/generation_config.json"
step examine   "$WORK/eval/.complete"          examine
$PYTHON -m nano.summary --work "$WORK" --pack "$PACK"
if [ "$SHIP" = 1 ] && ! [ "$PACK" -ef model/nano ]; then
    for part in "$PACK"/*; do
        ship "$part" "model/nano/$(basename "$part")"
    done
fi
echo "== talk to it: python eval_omni.py --load_from $PACK"
