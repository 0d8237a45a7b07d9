#!/usr/bin/env bash
# The nano world from zero, offline: corpus, tokenizer, speech, codec, data, text, then a model that speaks: a pack in out/nano/pack.
# With SENSES=1 it then learns to hear and to see.
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
LLM_STEPS=${LLM_STEPS:-2300}
STEPS=${STEPS:-4500}
PROCESSES=${PROCESSES:-$([ "$DEVICE" = cpu ] && nproc || echo 1)}  # of the trainings; one a core
BATCH=${BATCH:-32}                        # rows per process
RATE=${RATE:-1.2e-3}
# of the Talker's trainings; the first codebooks carry the words
TALKER=${TALKER:---freeze_backbone all --guided_attention 0.5 --history_dropout 0.3 --codebook_weights 4 2 1.5 1 0.5 0.5 0.5 0.5}
DTYPE=${DTYPE:-$($PYTHON -c "from model.hardware import fast_bfloat16; print('bfloat16' if fast_bfloat16('$DEVICE') else 'float32')")}
COMPILE=${COMPILE:-1}                     # halves the time of a step, on a CPU too
WORKERS=${WORKERS:-$([ "$DEVICE" = cpu ] && echo 0 || echo 12)}
EXTRA=${EXTRA:-}                          # more flags for the trainings
# 1: ears, eyes, and the stages that learn to use them. Tried in miniature; the full run is not done yet.
SENSES=${SENSES:-0}
EARS=${EARS:---utterances 12000 --steps 9000 --batch_size 24}
EYES=${EYES:---steps 6000}
SPELL_STEPS=${SPELL_STEPS:-450}
HEAR_STEPS=${HEAR_STEPS:-1500}
TURN_STEPS=${TURN_STEPS:-1200}
THINK_STEPS=${THINK_STEPS:-4000}
HEARD=${HEARD:-4500}                      # rows of each set of spoken questions that are written down
READ_STEPS=${READ_STEPS:-500}
SEE_STEPS=${SEE_STEPS:-5000}
TALK_STEPS=${TALK_STEPS:-1400}
TALKS=${TALKS:---askings 1 --conversations 4000 --typed 20000 --questions 120000 --spoken 6000 --heldout 120}  # sizes of their data
FOREIGN=${FOREIGN:-0.5}                   # share of the further questions that festival and espeak-ng ask

for program in flite $([ "$SENSES" = 1 ] && [ "$FOREIGN" != 0 ] && echo festival espeak-ng); do  # now, not after hours
    command -v "$program" >/dev/null || { echo "the $program program is missing: see nano/README.md"; exit 2; }
done

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

speech() {  # what the codec learns from
    $PYTHON -m nano.speech --texts "$WORK/corpus/train.jsonl" --limit "$LIMIT" --others 0.25 --out "$WORK/speech"
    touch "$WORK/speech/.complete"
}

talks() {  # conversations with spoken questions and pictures; the replies are text alone, until lend_speech
    # shellcheck disable=SC2086
    $PYTHON -m nano.build_sets a2a multi i2t --unspoken --corpus "$WORK/corpus" --codec "$WORK/codec/targets.pt" \
        --speaker_encoder none --tokenizer "$PACK" --out "$WORK/data" $TALKS
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

stage() {  # stage NAME FROM RATE OPTIONS DATA...: one run of the trainer, $WORK/model/FROM_256.pth -> NAME_256.pth
    local name=$1 from=$2 rate=$3 options=$4
    shift 4
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 $PYTHON -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" -m trainer.train_sft_omni \
        --preset nano --tokenizer_dir "$PACK" --from_weight "$WORK/model/${from}_256.pth" \
        --data_path "${@/#/$WORK/data/}" --save_dir "$WORK/model" --save_weight "$name" --optimizer muon $options \
        --audio_encoder_dir "$PACK/SenseVoiceSmall" --vision_dir "$PACK/siglip2-base-p32-256-ve" \
        --batch_size "$BATCH" --learning_rate "$rate" --max_seq_len 448 --system_share 0 --device "$DEVICE" --dtype "$DTYPE" \
        --use_compile "$COMPILE" --num_workers "$WORKERS" --save_interval 200 --keep_last 3 --from_resume 1 $EXTRA
    finished "$WORK/model/${name}_256_resume.pth"  # stopped by SIGTERM it has saved, but is not to be used yet
    touch "$WORK/model/${name}_256.pth.done"
}

finished() {
    $PYTHON -c 'import sys
from model.checkpoint import load_weights
state = load_weights(sys.argv[1])
sys.exit(state["step"] < state["total_steps"])' "$1" || { echo "$1: stopped before the end; run this again to continue"; exit 1; }
}

hear() {  # the ear learns to be read: see nano/README.md
    $PYTHON -m nano.train_sensevoice --corpus "$WORK/corpus" --device "$DEVICE" --speech "$WORK/speech_heard" --work "$WORK/hear" \
        --start_from "$PACK/SenseVoiceSmall" --questions "$WORK/data/a2a_train" "$WORK/data/more_train" \
        --clean 0.5 --dropout 0 --batch_size 64 --steps "$HEAR_STEPS" \
        --out "$WORK/hear/SenseVoiceSmall" --tokenizer_dir "$PACK" \
        --speller "$WORK/model/spell_256.pth" --speller_out "$WORK/model/hear_256.pth"
    ship "$WORK/hear/SenseVoiceSmall" "$PACK/SenseVoiceSmall"
    touch "$WORK/model/hear_256.pth.done"
}

turns() {  # a turn looks the same wherever it stands in a talk
    local sets=(a2a_train more_train facts_train facts_train t2a_sentences i2t_train mix_train)
    $PYTHON -m nano.train_turns --from_weight "$WORK/model/hear_256.pth" --out "$WORK/model/turns_256.pth" --work "$WORK/turns" \
        --data_path "${sets[@]/#/$WORK/data/}" --pack "$PACK" --steps "$TURN_STEPS"
    touch "$WORK/model/turns_256.pth.done"
}

ship() {  # copy as a whole or not at all
    mkdir -p "$(dirname "$2")"
    rm -rf "$2.part"
    cp -r "$1" "$2.part"
    mv "$2.part" "$2"
}

step corpus    "$WORK/corpus/questions.jsonl"  $PYTHON -m nano.corpus --out "$WORK/corpus"
step tokenizer "$PACK/tokenizer_config.json"   $PYTHON -m nano.tokenizer --corpus "$WORK/corpus" --out "$PACK"
step speech    "$WORK/speech/.complete"        speech
step speakers  "$PACK/campplus/model.pt"       $PYTHON -m nano.train_campplus --texts "$WORK/corpus/train.jsonl" \
    --work "$WORK/campplus" --out "$PACK/campplus" --device "$DEVICE"
step codec     "$PACK/mimi/config.json"        codec
cp "$WORK/corpus/heldout.jsonl" "$PACK/heldout.jsonl"  # for python -m evals.eval_nano
# The nano model knows one right answer to most questions, and reads what its ear writes of spoken ones.
echo '{"temperature": 0.1, "transcript": 2}' > "$PACK/generation_config.json"
step voices    "$PACK/voices.pt"               $PYTHON -m nano.voices --codec "$WORK/codec/targets.pt" \
    --speaker_encoder "$PACK/campplus" --out "$PACK/voices.pt" --device "$DEVICE"
step data      "$WORK/data/t2a_heldout/manifest.json" $PYTHON -m nano.build_sets t2a --corpus "$WORK/corpus" --limit "$LIMIT" \
    --codec "$WORK/codec/targets.pt" --speaker_encoder "$PACK/campplus" --strangers 0.1 --tokenizer "$PACK" --out "$WORK/data"
step llm       "$WORK/model/llm_256.pth"       $PYTHON -m nano.train_llm --corpus "$WORK/corpus" --tokenizer_dir "$PACK" \
    --out "$WORK/model" --work "$WORK/llm" --steps "$LLM_STEPS" --device "$DEVICE" --dtype "$DTYPE"
# The Thinker has learnt its text; frozen, it keeps it, and a step costs a third less.
step t2a       "$WORK/model/t2a_256.pth.done"  stage t2a llm "$RATE" "$TALKER --max_steps $STEPS --warmup_steps 100" \
    t2a_train t2a_sentences t2a_mixed t2a_words
last=t2a
if [ "$SENSES" = 1 ]; then
    step ears      "$PACK/SenseVoiceSmall/model.pt" $PYTHON -m nano.train_sensevoice --corpus "$WORK/corpus" --device "$DEVICE" \
        --speech "$WORK/speech_heard" --work "$WORK/sensevoice" --out "$PACK/SenseVoiceSmall" $EARS
    step eyes      "$PACK/siglip2-base-p32-256-ve/config.json" $PYTHON -m nano.train_siglip --device "$DEVICE" \
        --work "$WORK/siglip" --out "$PACK/siglip2-base-p32-256-ve" $EYES
    step asked     "$WORK/data/told_heldout/manifest.json" talks
    step more      "$WORK/data/facts_train/manifest.json" $PYTHON -m nano.build_sets more --unspoken --corpus "$WORK/corpus" \
        --codec "$WORK/codec/targets.pt" --speaker_encoder none --tokenizer "$PACK" --out "$WORK/data" --foreign "$FOREIGN"
    step examples  "$PACK/examples" $PYTHON -m nano.build_examples --corpus "$WORK/corpus" --out "$PACK/examples"
    # The released recipe trains a projector and then everything, for each sense. Here the audio projector first learns to write what is
    # said, then the ear along with it, then projectors and Thinker learn together, from the text alone and only above the bridge: a step
    # costs a third, and the Talker, which hears what it knows, speaks no worse afterwards.
    step spell     "$WORK/model/spell_256.pth.done" stage spell t2a 1e-2 "--mode spelling --spelling 1 --question_mix 1 0 0 0 \
        --augment_share 0.5 --max_steps $SPELL_STEPS --warmup_steps 20" a2a_train mix_train
    step hear      "$WORK/model/hear_256.pth.done" hear
    step language  "$PACK/SenseVoiceSmall/ngram.npz" $PYTHON -m nano.train_language --corpus "$WORK/corpus" --ear "$PACK/SenseVoiceSmall"
    step turns     "$WORK/model/turns_256.pth.done" turns
    step think     "$WORK/model/think_256.pth.done" stage think turns 1.2e-3 "--mode thinker --spelling 0.3 \
        --question_mix 0.75 0.05 0.1 0.1 --augment_share 0.5 --max_steps $THINK_STEPS --warmup_steps 20" \
        a2a_train more_train multi_train typed_train facts_train mix_train i2t_train
    # in the end it is shown what the ear writes down, too, mistakes included; such words are no target for the projector
    step heard     "$WORK/data/heard_train/multi_train.parquet" $PYTHON -m nano.write_down "$WORK"/data/{a2a,more,mix,multi}_train \
        --ear "$PACK/SenseVoiceSmall" --limit "$HEARD" --out "$WORK/data/heard_train"
    step read      "$WORK/model/read_256.pth.done" stage read think 5e-4 "--mode thinker --question_mix 0.3 0.05 0.05 0.6 \
        --augment_share 0.3 --max_steps $READ_STEPS --warmup_steps 20" \
        heard_train heard_train a2a_train multi_train typed_train facts_train mix_train i2t_train
    # pictures that it has not seen before, and enough of the rest that nothing is forgotten
    step see       "$WORK/model/see_256.pth.done" stage see read 1e-3 "--mode thinker --question_mix 0.2 0.3 0.05 0.45 \
        --augment_share 0.3 --max_steps $SEE_STEPS --warmup_steps 20" \
        i2t_train typed_train facts_train heard_train a2a_train multi_train mix_train
    # the Talker has never stood behind a picture, a sound or a long talk: it would not end, or not begin
    step lent      "$WORK/data/lent_train/lent.parquet" $PYTHON -m nano.lend_speech "$WORK"/data/{a2a,multi,mix,i2t}_train \
        --speech "$WORK"/data/t2a_{train,sentences} --out "$WORK/data/lent_train"
    step talk      "$WORK/model/talk_256.pth.done" stage talk see "$RATE" "$TALKER --mode talker --max_steps $TALK_STEPS \
        --warmup_steps 20" lent_train t2a_train t2a_sentences t2a_mixed
    last=talk
fi
$PYTHON -m trainer.average_weights "$WORK/model/${last}"_256_resume_step*.pth --out "$PACK/sft_omni_256.pth"
if [ "$SHIP" = 1 ] && [ "$PACK" != model/nano ]; then
    for part in "$PACK"/*; do
        rm -rf "model/nano/$(basename "$part")"
        ship "$part" "model/nano/$(basename "$part")"
    done
fi
echo "== talk to it: python eval_omni.py --load_from $PACK"
