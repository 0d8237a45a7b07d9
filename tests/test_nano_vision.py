"""The nano world's pictures: scenes, their questions, the encoder's trainer and the parquet rows with pictures."""
import json
import re

import numpy as np
import pytest
import torch

from model.encoders import SigLIP2
from nano import corpus, scenes, train_siglip
from nano.scenes import Scene, Thing

TINY = dict(hidden=16, intermediate=16, layers=1, heads=2, batch_size=3, questions=2)
SCENE = Scene((Thing("star", "red", False, 0), Thing("fish", "blue", True, 4), Thing("star", "blue", True, 8)))


def every_question(scene, rounds=400):
    rng = np.random.default_rng(0)
    found = {}
    for _ in range(rounds):
        for question, answer, kind in scenes.questions(scene, rng):
            assert found.setdefault(question, answer) == answer, (question, answer, found[question])
    return found


def test_answers_are_true_of_a_known_scene():
    answers = every_question(SCENE)
    for question, answer in {
            "What color is the fish?": "The fish is blue.",
            "What color is the small star?": "The small star is red.",
            "How many stars are there?": "There are two stars in the picture.",
            "How many blue things do you see?": "I see two blue things.",
            "What is the red thing?": "The red thing is a star.",
            "What is in the middle?": "There is a blue fish in the middle.",
            "What is at the bottom?": "There is nothing at the bottom.",
            "Where is the blue star?": "The blue star is in the bottom right corner.",
            "What is above the fish?": "There is a red star above the fish.",
            "What is right of the blue star?": "There is nothing right of the blue star.",
            "Is the fish left of the red star?": "No, the fish is right of the red star.",
            "Is the fish blue?": "Yes, the fish is blue.",
            "Which is bigger, the red star or the fish?": "The fish is bigger than the red star.",
            "Describe the picture.": "I see a red star, a blue fish and a blue star."}.items():
        assert answers.get(question) == answer, (question, answers.get(question))
    assert not any(question.startswith("What color is the star?") for question in answers)  # there are two


def test_answers_are_short_sentences_of_known_words():
    rng = np.random.default_rng(1)
    answer_words, question_words, kinds = set(), set(), set()
    for _ in range(400):
        scene = scenes.draw_scene(rng)
        assert len({(thing.kind, thing.color) for thing in scene.things}) == len({thing.cell for thing in scene.things})
        for question, answer, kind in scenes.questions(scene, rng):
            assert 3 <= len(answer.split()) <= 14 and answer[0].isupper() and answer.endswith("."), answer
            answer_words |= set(corpus.words(answer))
            question_words |= set(corpus.words(question))
            kinds.add(kind)
            assert len(train_siglip.word_ids(question) + train_siglip.word_ids(answer)) < train_siglip.MAX_WORDS
    assert answer_words == set(scenes.SCENE_WORDS) and question_words <= {*scenes.SCENE_WORDS, *scenes.QUESTION_WORDS}
    assert kinds == set(scenes.QUESTION_KINDS)


def test_yes_and_no_are_equally_often_right():
    rng = np.random.default_rng(2)
    asked = [dict((kind, answer) for _, answer, kind in scenes.questions(scenes.draw_scene(rng), rng))["yes or no"] for _ in range(400)]
    assert 160 < sum(answer.startswith("Yes") for answer in asked) < 240


def test_heldout_scenes_are_never_drawn_for_training():
    rng = np.random.default_rng(3)
    assert not any(scenes.draw_scene(rng).is_heldout() for _ in range(200))
    assert all(scenes.draw_scene(rng, heldout=True).is_heldout() for _ in range(20))


def test_pictures_show_each_thing_in_its_cell_and_never_repeat():
    first, boxes = scenes.draw(SCENE, np.random.default_rng(4))
    again, _ = scenes.draw(SCENE, np.random.default_rng(4))
    other, _ = scenes.draw(SCENE, np.random.default_rng(5))
    assert first.size == (256, 256) and np.array_equal(first, again) and not np.array_equal(first, other)
    assert len(scenes.png(first)) < 16_000
    for thing, (x, y, half) in zip(SCENE.things, boxes):
        assert (int(x // scenes.CELL), int(y // scenes.CELL)) == (thing.column, thing.row)
        assert (half > 30) == thing.big
        distance = np.abs(np.asarray(first, int) - scenes.COLORS[thing.color]).max(-1)
        near = distance[int(y - half):int(y + half), int(x - half):int(x + half)] < 16
        assert near.mean() > 0.2, (thing, near.mean())


def test_patch_targets_name_what_covers_a_patch():
    targets = train_siglip.patch_targets(SCENE, np.array([(42, 42, 22), (128, 128, 38), (213, 213, 38)], np.float32))
    kind, center = targets["kind"].reshape(8, 8), targets["center"].reshape(8, 8)
    star, fish = list(scenes.KINDS).index("star") + 1, list(scenes.KINDS).index("fish") + 1
    assert kind[1, 1] == star and kind[4, 4] == fish and kind[3, 3] == fish and kind[6, 6] == star and kind[0, 7] == 0
    assert center.sum() == 3 and center[1, 1] and center[4, 4] and center[6, 6]
    assert targets["size"].reshape(8, 8)[1, 1] == 1 and targets["size"].reshape(8, 8)[4, 4] == 2


def test_labels_are_the_answer_one_word_ahead():
    batch = train_siglip.make_batch(np.random.default_rng(6), 2, 3)
    ids, labels = batch["ids"][0, 0], batch["labels"][0, 0]
    said = labels[labels != train_siglip.IGNORE]
    start = int(np.argmax(labels != train_siglip.IGNORE))
    assert np.array_equal(ids[start + 1:start + 1 + len(said)], said) and said[-1] == train_siglip.END
    assert train_siglip.WORDS[ids[start]] in "?." and (ids[start + 1 + len(said):] == train_siglip.PAD).all()


def test_training_learns():
    batch = train_siglip.as_tensors(train_siglip.make_batch(np.random.default_rng(7), 3, 2))
    run = train_siglip.Run(train_siglip.Options(**TINY), "cpu")
    values = [sum(map(float, train_siglip.train_step(run, batch, 0.1))) for _ in range(30)]
    assert values[-1] < 0.6 * values[0], values


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path):
    options = train_siglip.Options(**TINY)
    whole = train_siglip.train(options, tmp_path / "whole", "cpu", 4, None, 0)
    half = train_siglip.Run(options, "cpu")
    for i in range(2):
        train_siglip.train_step(half, train_siglip.shorten(train_siglip.Batches(options)[i]), i / 4)
        half.step += 1
    half.save(tmp_path / "killed" / "state.pt")
    resumed = train_siglip.train(options, tmp_path / "killed", "cpu", 4, None, 0)
    assert resumed.step == whole.step == 4
    for a, b in zip(whole.parameters, resumed.parameters):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="same options"):
        train_siglip.train(train_siglip.Options(**TINY | {"lr": 1.0}), tmp_path / "killed", "cpu", 4, None, 0)


def test_the_folder_loads_as_the_released_one_does(tmp_path):
    run = train_siglip.Run(train_siglip.Options(**TINY), "cpu")
    folder = tmp_path / train_siglip.FOLDER
    train_siglip.save_folder(run.model, folder)
    image, _ = scenes.draw(SCENE, np.random.default_rng(8))
    tokens = SigLIP2.load(folder)([image])
    assert tokens.shape == (1, 64, 16)
    with torch.no_grad():
        expected = run.model.eval()(train_siglip.to_pixels(torch.from_numpy(np.array(image))[None])).last_hidden_state
    assert (tokens - expected).abs().max() < 0.02  # fp16 weights
    report = train_siglip.probe(run.model, run.heads, "cpu", pictures=6)
    assert report["questions"] > 30 and set(report["answers"]) == set(scenes.QUESTION_KINDS)


def test_a_planned_picture_shows_the_scene_that_is_asked_about():
    items = scenes.plan(6, 2, False, 9)
    assert [item["picture"] for item in items] == [0, 0, 1, 1, 2, 2]
    scene = scenes.draw_scene(scenes.picture_rng(9, False, 1))
    assert items[2]["told"] == scenes.told(scene) and items[2]["kind"] != items[3]["kind"]
    assert scenes.plan(6, 2, False, 9) == items
    assert scenes.paint(9, False, 1) == scenes.paint(9, False, 1) != scenes.paint(9, True, 1)
    assert re.fullmatch(r"There is an? (big|small) .*\.", items[0]["told"]) and json.dumps(items)
