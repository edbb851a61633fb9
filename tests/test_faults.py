"""What else can go wrong: every fault gets one line, and nothing that was finished is lost. The table is FAULTS.md."""

import ast
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, writes
from PIL import Image

import main
from models.model8 import CustomResNet
from models.model9 import TransformerModel
from tests.test_main import TWO_EPOCHS, call
from utils import classify, device, runs, schedule, training
from utils.checkpoint import load_weights, save_weights
from utils.classify import load_classifier
from utils.data import load_data, load_folder
from utils.errors import DataError, FileError, TrainingError
from utils.files import load_tensors, replace_file, save_tensors

ROOT = Path(__file__).parents[1]
DIGITS = load_data("digits")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The folder of a session 9 run that is not a smoke run."""
    monkeypatch.setattr(runs, "SMOKE", False)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    return tmp_path / "runs/session9"


def refused(monkeypatch, *arguments) -> str:
    """The one line that main.py ends with."""
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code.strip()
    return stop.value.code


def stop_in_the_second_epoch(monkeypatch):
    real = training.train

    def train(*arguments):
        if arguments[-1] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", train)
        assert "Every finished epoch is kept" in refused(monkeypatch, *TWO_EPOCHS)


# ---- files of weights and checkpoints


class Evil:
    """Runs code when a careless program unpickles it."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


def damage(path: Path, kind: str) -> None:
    save_weights(path, TransformerModel(), 9, DIGITS)
    whole = path.read_bytes()
    if kind == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no weights":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif kind == "another archive":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("notes/today.txt", "nothing")
    elif kind == "malicious":
        torch.save({"model": Evil()}, path)
    elif kind == "malicious, old form":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "absent":
        path.unlink()


DAMAGES = {
    "cut off": "is damaged or cut off: fetch it anew, or move it away and train anew",
    "empty": "is damaged or cut off: fetch it anew, or move it away and train anew",
    "no weights": "is no file of weights: give a weights.pt that a run wrote",
    "another archive": "is damaged or cut off: fetch it anew, or move it away and train anew",
    "malicious": "holds objects that could run code, so it was not loaded: use files that this program wrote",
    "malicious, old form": "is no file of weights: give a weights.pt that a run wrote",
    "a list": "is no file of weights: give a weights.pt that a run wrote",
    "a folder": "cannot be read (Is a directory): give a weights.pt that a run wrote",
    "absent": "cannot be read (No such file or directory): give a weights.pt that a run wrote",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_weights(tmp_path, monkeypatch, kind):
    path = tmp_path / "weights.pt"
    damage(path, kind)
    monkeypatch.chdir(tmp_path)  # where Evil would leave its mark
    for load in (load_classifier, lambda path: load_weights(path, TransformerModel())):
        with pytest.raises(FileError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path} ") and DAMAGES[kind] in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "hacked").exists()


def test_damaged_weights_from_the_terminal(tmp_path, monkeypatch):
    damage(tmp_path / "weights.pt", "malicious")
    shown = refused(monkeypatch, "evaluate", "--checkpoint", tmp_path / "weights.pt", "--data", "digits")
    assert shown.startswith("main.py: ") and "could run code" in shown


def test_weights_of_another_network(tmp_path):
    save_weights(tmp_path / "weights.pt", CustomResNet(), 8, DIGITS)
    with pytest.raises(FileError, match=r"weights.pt holds no weights of TransformerModel: give those of its own run"):
        load_weights(tmp_path / "weights.pt", TransformerModel())


@pytest.mark.parametrize("content", [{"session": 5}, {"session": 8}, {"history": {}}], ids=str)
def test_weights_without_what_a_classifier_needs(tmp_path, content):
    save_tensors(tmp_path / "checkpoint.pt", {"model": TransformerModel().state_dict(), **content})
    with pytest.raises(FileError, match=r"checkpoint.pt holds no trained network: give the weights.pt of a finished"):
        load_classifier(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("kind", ["cut off", "malicious", "of another network"])
def test_damaged_checkpoint_stops_the_run_and_stays(folder, monkeypatch, kind):
    stop_in_the_second_epoch(monkeypatch)
    checkpoint = folder / "checkpoint.pt"
    content = load_tensors(checkpoint)
    if kind == "of another network":
        save_tensors(checkpoint, content | {"model": CustomResNet().state_dict()})
    else:
        damage(checkpoint, kind)
    before = checkpoint.read_bytes()
    shown = refused(monkeypatch, *TWO_EPOCHS)
    wanted = "was saved by another run: move it away to train from the start"
    assert str(checkpoint) in shown and (wanted if kind == "of another network" else DAMAGES[kind]) in shown
    assert checkpoint.read_bytes() == before and not (folder / "run.json").exists()


def test_damaged_result_of_the_lr_finder(folder, monkeypatch):
    stop_in_the_second_epoch(monkeypatch)
    (folder / "lr_finder.json").write_text('{"lrs": [')
    assert "lr_finder.json cannot be read: remove it, and the LR finder runs again" in refused(monkeypatch, *TWO_EPOCHS)


def test_damaged_plan_counts_as_another_run(folder, monkeypatch, capsys):
    stop_in_the_second_epoch(monkeypatch)
    (folder / "plan.json").write_text('{"recipe": ')
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    call(monkeypatch, *TWO_EPOCHS)
    (aside,) = folder.parent.glob("session9-*")
    assert (aside / "checkpoint.pt").read_bytes() == checkpoint and f"moved to {aside}/" in capsys.readouterr().out


# ---- the disk


def test_full_disk_keeps_what_stood_there(tmp_path):
    """The system itself refuses files beyond 100 kB here, as a full disk would."""
    path = tmp_path / "checkpoint.pt"
    save_tensors(path, {"epoch": 1})
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(FileError, match=r"checkpoint.pt cannot be written \(File too large\): make room or mend"):
            save_tensors(path, {"epoch": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_disk_that_fills_up_in_a_run(folder, monkeypatch):
    real, calls = os.replace, []

    def full(part, path):
        calls.append(path.name)
        if calls.count("checkpoint.pt") == 2:
            raise OSError(28, "No space left on device")
        return real(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert "checkpoint.pt cannot be written (No space left on device)" in refused(monkeypatch, *TWO_EPOCHS)
    assert len(load_tensors(folder / "checkpoint.pt")["history"]["lr"]) == 1
    call(monkeypatch, *TWO_EPOCHS, "--resume")
    assert json.loads((folder / "run.json").read_text())["epochs"] == 2


@pytest.mark.parametrize(
    "error", [OSError(30, "Read-only file system"), OSError(28, "No space left on device")], ids=str
)
def test_file_that_cannot_be_written(tmp_path, error):
    def write(part):
        part.write_text("half")
        raise error

    (tmp_path / "run.json").write_text("whole")
    with pytest.raises(FileError, match=rf"run.json cannot be written \({error.strerror}\): make room or mend"):
        replace_file(tmp_path / "run.json", write)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("run.json", "whole")]


def test_runs_that_is_no_folder(folder, monkeypatch):
    folder.parent.write_text("a file stands where the folder should")
    assert "session9 cannot be made (" in refused(monkeypatch, *TWO_EPOCHS)


# ---- two at once, and the end of a process

HOLDS = """
import sys, time
from pathlib import Path
from utils.runs import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_two_runs_in_one_folder(folder, monkeypatch):
    other = subprocess.Popen([sys.executable, "-c", HOLDS, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    try:
        shown = refused(monkeypatch, *TWO_EPOCHS)
        assert "session9 is in use by another notebook or terminal: end that one" in shown and not folder.exists()
    finally:
        other.kill()
        other.communicate()
    runs.hold(folder)  # a process that was killed holds nothing


def test_sigterm_is_answered_like_ctrl_c(tmp_path):
    command = [sys.executable, "main.py", *TWO_EPOCHS[:-1], "40", "--max-lr", "0.01", "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "EVA8_SMOKE"} | {"RUNS": str(tmp_path)}
    run = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while run.poll() is None and not (tmp_path / "session9/checkpoint.pt").exists():
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=60)
    assert told.strip().endswith("Stopped. Every finished epoch is kept: the same command goes on after the last one.")
    assert run.returncode == 1 and "Traceback" not in told
    assert len(load_tensors(tmp_path / "session9/checkpoint.pt")["history"]["lr"]) >= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_notebook_that_is_stopped_from_the_terminal(tmp_path, number):
    cells = [new_code_cell(f"import os, time; print('pid', os.getpid()); time.sleep({seconds})") for seconds in (60,)]
    (tmp_path / "session9_assignment.ipynb").write_text(writes(new_notebook(cells=cells)))
    run = subprocess.Popen(
        [sys.executable, "-m", "utils.execute", "9"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    kernel = int(run.stdout.readline().split()[1])
    run.send_signal(number)
    _, told = run.communicate(timeout=60)
    assert told.strip().startswith("session9_assignment.ipynb was ended, by you or for want of memory.")
    assert "\n" not in told.strip() and run.returncode == 1
    assert not list(tmp_path.rglob("runs/**/*.ipynb"))
    for _ in range(50):
        if not Path(f"/proc/{kernel}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the notebook's kernel still runs")


@pytest.mark.parametrize(
    "module, arguments", [("utils.execute", ["5"]), ("utils.publish", []), ("utils.publish", ["x"])]
)
def test_unknown_session(module, arguments):
    told = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2 and f"python -m {module}: error: " in told.stderr and "session" in told.stderr


# ---- the training


def too_big(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.parametrize("where", ["LR finder", "training"])
def test_gpu_out_of_memory(folder, monkeypatch, where):
    if where == "LR finder":
        monkeypatch.setattr(schedule.LRFinder, "range_test", too_big)
    else:
        monkeypatch.setattr(training, "train", too_big)
    shown = refused(monkeypatch, *TWO_EPOCHS, "--batch-size", "100")
    assert "the GPU's memory is too small for batches of 100 images: try 50 (main.py: --batch-size; notebook:" in shown


def test_room_for_lets_other_errors_through():
    with pytest.raises(ZeroDivisionError), device.room_for(1):
        1 / 0  # noqa: B018


def test_max_lr_at_which_the_loss_is_lost(folder, monkeypatch):
    shown = refused(monkeypatch, *TWO_EPOCHS, "--max-lr", "1e30")
    assert re.search(
        r"the loss became (nan|inf) in epoch \d, batch \d+, at LR .*: try a max LR a quarter as high", shown
    )


# ---- images


def write_images(folder: Path, classes: list[str], pixel=None) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            colour = pixel or (number * 20, 255 - number * 20, 7)
            Image.new("RGB", (32, 32), colour).save(folder / split / name / "0.png")
    return folder


def test_more_classes_than_the_networks_tell_apart(tmp_path):
    photos = write_images(tmp_path / "photos", [f"class{i:02}" for i in range(11)])
    with pytest.raises(DataError, match=r"photos has 11 classes, these networks tell 10 apart: leave out the others"):
        load_folder(photos)
    shutil.rmtree(photos / "train/class10")
    shutil.rmtree(photos / "test/class10")
    assert len(load_folder(photos).classes) == 10


def test_images_of_one_colour(tmp_path, monkeypatch, folder):
    photos = write_images(tmp_path / "black", ["cat", "dog"], pixel=(0, 0, 0))
    with pytest.raises(DataError, match=r"black: all training images are of one colour: give others"):
        load_folder(photos)


def test_dangling_link_in_a_folder(tmp_path):
    photos = write_images(tmp_path / "photos", ["cat", "dog"])
    (photos / "train/cat/1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"photos cannot be read \(No such file or directory\)"):
        load_folder(photos)


def test_archive_with_a_password(tmp_path, monkeypatch):
    photos = write_images(tmp_path / "photos", ["cat", "dog"])
    shutil.make_archive(str(photos), "zip", photos)
    archive = bytearray((tmp_path / "photos.zip").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag "encrypted" of every entry
        for found in re.finditer(re.escape(mark), bytes(archive)):
            archive[found.start() + offset] |= 1
    (tmp_path / "photos.zip").write_bytes(archive)
    with pytest.raises(
        DataError, match=r"photos.zip is cut off or no archive of its kind \(.*encrypted.*: fetch it anew"
    ):
        load_folder(tmp_path / "photos.zip")


def test_malicious_cache_is_not_run(tmp_path, monkeypatch):
    photos = write_images(tmp_path / "photos", ["cat", "dog"])
    load_folder(photos)
    monkeypatch.chdir(tmp_path)
    torch.save({"mark": Evil(), "found": {}}, tmp_path / "photos.cache.pt")
    assert load_folder(photos).classes == ("cat", "dog")
    assert not (tmp_path / "hacked").exists()


def test_archive_of_a_device(tmp_path):
    photos = write_images(tmp_path / "photos", ["cat", "dog"])
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos / "train", "train")
        archive.add(photos / "test", "test")
        odd = tarfile.TarInfo("train/cat/9.png")
        odd.type = tarfile.CHRTYPE
        archive.addfile(odd)
    assert len(load_folder(tmp_path / "photos.tar").train_labels) == 2


@pytest.mark.parametrize("kind", ["half", "text", "folder", "huge"])
def test_picture_that_cannot_be_classified(tmp_path, monkeypatch, kind):
    save_weights(tmp_path / "weights.pt", TransformerModel(), 9, DIGITS)
    path = tmp_path / "horse.png"
    content = io.BytesIO()
    Image.new("RGB", (400, 400)).save(content, "png")
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"half": content.getvalue()[:300], "text": b"a horse", "huge": content.getvalue()}[kind])
    if kind == "huge":
        monkeypatch.setattr(classify.Image, "MAX_IMAGE_PIXELS", 1000)  # as if it had billions
    shown = refused(monkeypatch, "classify", path, "--checkpoint", tmp_path / "weights.pt")
    assert "horse.png is not an image that Pillow can read: give a PNG or JPEG file" in shown


# ---- what the terminal is told


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", str(2**32)])
def test_seed_that_is_none(monkeypatch, capsys, seed):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "session9", f"--seed={seed}")
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1
    assert f"--seed: '{seed}' is not a whole number from 0 to 4294967295" in told


def test_data_that_do_not_exist(monkeypatch, folder):
    shown = refused(monkeypatch, "session9", "--data", "nowhere")
    assert shown == "main.py: nowhere does not exist: set DATA to a folder or an archive of images."
    assert not folder.exists()


def test_ctrl_c_outside_a_training_promises_nothing(monkeypatch):
    monkeypatch.setattr(main, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert refused(monkeypatch, "evaluate", "--checkpoint", main.WEIGHTS) == "\nStopped."


def test_lost_loss_names_its_batch():
    losses = [torch.tensor(1.0), torch.tensor(float("inf"))]
    with pytest.raises(TrainingError, match=r"loss became inf in epoch 3, batch 1, at LR 0\.2"):
        training.running(losses, [torch.tensor(1)] * 2, [10, 10], [0.1, 0.2], epoch=3)


# ---- the table itself

ROW = re.compile(r"\| (?P<fault>[^|]+) \| (?P<sees>[^|]+) \| `(?P<file>test_\w+\.py)::(?P<test>test_\w+)` \|")


def rows() -> list[re.Match]:
    lines = (ROOT / "FAULTS.md").read_text("utf-8").splitlines()
    return [ROW.fullmatch(line) or pytest.fail(line) for line in lines if line.startswith("| ") and "`test_" in line]


def test_the_table_names_tests_that_exist():
    assert len(rows()) >= 40
    for row in rows():
        assert f"def {row['test']}(" in (ROOT / "tests" / row["file"]).read_text("utf-8"), row["test"]


def test_the_table_quotes_the_programs_words():
    """What stands in quotation marks, between its dots, is text of the program."""
    texts = []
    for path in (ROOT / "main.py", *(ROOT / "utils").glob("*.py"), *(ROOT / "models").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    for row in rows():
        for quoted in re.findall("“([^”]+)”", row["sees"]):
            for piece in filter(None, (piece.strip() for piece in quoted.split("…"))):
                assert any(piece in text for text in texts), piece
