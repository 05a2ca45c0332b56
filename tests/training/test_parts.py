"""Test what is trained of a variant."""

from pathlib import Path

from resnets.data.split import split_task
from resnets.models.bundle import SHIPPED
from resnets.tasks.task import Task
from resnets.training.parts import parts_of
from resnets.training.show import Curves
from tests.data.photos import pets, prepare, split_options, write_folder


def make_task(folder: Path, **options: object) -> Task:
    prepare(write_folder(folder / "photos", pets(10)), folder / "task")
    split_task(folder / "task", split_options(**options), (3, 5))
    return Task(folder / "task")


def test_without_folds_each_repeat_is_one_training_and_the_first_is_shipped(tmp_path):
    parts = parts_of(make_task(tmp_path), [3, 5], 7)
    assert [(part.repeat, part.file, part.place, part.word) for part in parts] == [
        (3, SHIPPED, {}, ""), (5, "repeat-5.safetensors", {}, ""),
    ]  # fmt: skip
    assert [str(part) for part in parts] == ["10", "12"]
    train, val = parts[0].sides()
    assert not set(train.ids) & set(val.ids)


def test_with_folds_no_model_sees_what_it_is_tested_on_and_the_shipped_one_sees_all(tmp_path):
    task = make_task(tmp_path, folds=3, val=2)
    *folds, whole = parts_of(task, [3, 5], 7)
    names = [f"repeat-{k}-fold-{fold}.safetensors" for k in (3, 5) for fold in range(3)]
    assert [part.file for part in folds] == names
    for repeat in (3, 5):
        tested = [part.task.side("test").ids for part in folds if part.repeat == repeat]
        assert sorted(name for ids in tested for name in ids) == task.side("test").ids
    for part in folds:
        seen = {name for side in part.sides() for name in side.ids}
        assert not seen & set(part.task.side("test").ids)
    assert (whole.repeat, whole.file, whole.word) == (3, SHIPPED, "-fold-all")
    assert (str(folds[1]), str(whole)) == ("10 fold 1", "10 fold all (val is train)")
    assert list(whole.folds) == names[:3]
    assert whole.sides()[0].ids == task.side("test").ids


def test_a_fold_starts_from_the_same_fold_of_another_variant(tmp_path):
    parts = parts_of(make_task(tmp_path, folds=3, val=2), [3], 7)
    starts = [part.start(tmp_path, is_variant=True) for part in parts]
    assert starts == [tmp_path / part.file for part in parts]
    assert {part.start(tmp_path, is_variant=False) for part in parts} == {tmp_path / SHIPPED}


def test_without_folds_all_repeats_start_from_the_shipped_bundle(tmp_path):
    for part in parts_of(make_task(tmp_path), [3, 5], 7):
        assert part.start(tmp_path, is_variant=True) == tmp_path / SHIPPED


def test_curves_name_the_fold_and_leave_out_the_model_of_all_images(tmp_path):
    curves = Curves(tmp_path / "history.csv")
    for part in parts_of(make_task(tmp_path, folds=3, val=2), [3], 7):
        part.curve(curves)([{"epoch": 1, "lr": 0.5}])
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0].startswith("repeat,fold,epoch,lr,")
    assert [line[:10] for line in lines[1:]] == [f"3,{fold},1,0.5," for fold in range(3)]
