"""Test what is trained of a variant."""

from pathlib import Path

from resnets.models.bundle import SHIPPED
from resnets.tasks.task import Task
from resnets.training.parts import parts_of
from tests.data.photos import pets, prepare, split_options, write_folder


def make_task(folder: Path, **options: object) -> Task:
    from resnets.data.split import split_task

    prepare(write_folder(folder / "photos", pets(10)), folder / "task")
    split_task(folder / "task", split_options(**options), (3, 5))
    return Task(folder / "task")


def test_without_folds_each_repeat_is_one_training_and_the_first_is_shipped(tmp_path):
    parts = parts_of(make_task(tmp_path), [3, 5])
    assert [(part.repeat, part.file, part.place, part.suffix) for part in parts] == [
        (3, SHIPPED, {}, ""), (5, "repeat-5.safetensors", {}, ""),
    ]  # fmt: skip
    train, val = parts[0].sides()
    assert not set(train.ids) & set(val.ids)


def test_with_folds_no_model_sees_what_it_is_tested_on_and_the_shipped_one_sees_all(tmp_path):
    task = make_task(tmp_path, folds=3, val=2)
    *folds, whole = parts_of(task, [3, 5])
    names = [f"repeat-{k}-fold-{fold}.safetensors" for k in (3, 5) for fold in range(3)]
    assert [part.file for part in folds] == names
    for repeat in (3, 5):
        tested = [part.task.side("test").ids for part in folds if part.repeat == repeat]
        assert sorted(name for ids in tested for name in ids) == task.side("test").ids
    for part in folds:
        seen = {name for side in part.sides() for name in side.ids}
        assert not seen & set(part.task.side("test").ids)
    assert (whole.repeat, whole.file, whole.suffix) == (3, SHIPPED, "-fold-all")
    assert list(whole.folds) == names[:3]
    assert whole.sides()[0].ids == task.side("test").ids
