"""The benchmark measures both pipelines on the same network and prints a table."""

import pytest
import torch

from benchmarks import throughput
from utils.sessions import SESSIONS


@pytest.fixture
def steps(monkeypatch):
    """The numbers of steps for which the benchmark asked to compile; nothing is compiled."""
    numbers = []

    def compile_where_it_pays(model, device, steps):
        numbers.append(steps)

    monkeypatch.setattr(throughput, "compile_where_it_pays", compile_where_it_pays)
    return numbers


def phases_of(pipeline, session, images):
    """The network of a pipeline, and its training and testing; on a GPU there is more."""
    torch.manual_seed(0)
    training, testing, *_ = pipeline(SESSIONS[session], throughput.noise(images))
    return testing.args[0], training, testing


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


@pytest.mark.parametrize("pipeline", [throughput.classic, throughput.ours])
def test_pipelines_train_the_network_of_the_session(pipeline, steps):
    model, training, _ = phases_of(pipeline, session=9, images=64)
    before = weights_of(model)
    training()
    assert isinstance(model, SESSIONS[9].network)
    assert not torch.equal(weights_of(model), before)


@pytest.mark.parametrize("pipeline", [throughput.classic, throughput.ours])
def test_pipelines_test_without_training(pipeline, steps):
    model, _, testing = phases_of(pipeline, session=9, images=64)
    before = weights_of(model)
    testing()
    assert torch.equal(weights_of(model), before)
    assert not model.training


def test_classic_trains_and_tests_one_network():
    model, training, _ = phases_of(throughput.classic, session=9, images=4)
    assert training.args[0] is model


def test_ours_trains_and_tests_one_network(steps):
    model, training, _ = phases_of(throughput.ours, session=9, images=4)
    assert training.args[0].model is model


@pytest.mark.parametrize("session", SESSIONS)
def test_classic_follows_the_recipe(session):
    recipe = SESSIONS[session].recipe
    _, training, _ = phases_of(throughput.classic, session, images=4)
    _, loader, _ = training.args
    crop = loader.collate_fn.args[0][0]
    images, _ = loader.collate_fn(loader.dataset)
    pixels_cut_out = (images == 0).all(dim=1).sum(dim=(1, 2))
    assert loader.batch_size == recipe.batch_size
    assert crop.padding == recipe.crop_padding
    assert pixels_cut_out.tolist() == [recipe.cutout**2] * 4


def test_classic_tests_on_normalized_images():
    _, _, testing = phases_of(throughput.classic, session=9, images=4)
    _, loader = testing.args
    images, labels = next(iter(loader))
    for image, label, (pixels, true_label) in zip(images, labels, loader.dataset, strict=True):
        expected = (torch.tensor(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.25
        torch.testing.assert_close(image, expected)
        assert label == true_label


@pytest.mark.parametrize("session", SESSIONS)
def test_ours_follows_the_recipe(session, steps):
    recipe = SESSIONS[session].recipe
    _, training, _ = phases_of(throughput.ours, session, images=4)
    step, loader = training.args
    assert loader.batch_size == recipe.batch_size
    assert step.max_grad_norm == recipe.max_grad_norm
    assert step.criterion.label_smoothing == recipe.label_smoothing


@pytest.mark.parametrize("session", SESSIONS)
def test_ours_is_compiled_where_a_full_run_is(session, steps):
    throughput.ours(SESSIONS[session], throughput.noise(4))
    assert len(steps) == SESSIONS[session].recipe.compile
    assert all(number > 1000 for number in steps)


def test_speed_is_the_median_without_the_warm_up(monkeypatch):
    times = []
    for round, seconds in enumerate([99, 1, 2, 5, 10, 20]):  # the warm-up and five rounds
        times.append(1000 * round)
        times.append(1000 * round + seconds)
    clock = iter(times)
    monkeypatch.setattr(throughput.time, "perf_counter", clock.__next__)
    speed = throughput.speed(epoch=dict, name="session 8")  # an epoch that does nothing
    assert speed == throughput.IMAGES / 5
    assert list(clock) == []  # all rounds were measured


@pytest.fixture
def readme(tmp_path, monkeypatch):
    """A README with a section for the table; the speeds are given, and nothing is trained."""
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- throughput -->\nold\n<!-- /throughput -->\nb\n")
    speeds = iter([1000.0, 300.0, 4500.0, 1200.0])  # classic: train, test; ours: train, test
    monkeypatch.setattr(throughput, "README", path)
    monkeypatch.setattr(throughput, "IMAGES", 8)

    def speed(epoch, name):
        return next(speeds)

    monkeypatch.setattr(throughput, "speed", speed)
    monkeypatch.setattr(throughput, "ours", two_phases)
    monkeypatch.setattr(throughput, "classic", two_phases)
    return path


def two_phases(session, data):
    return [None, None]


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["throughput", *arguments])
    throughput.main()


def test_table_compares_our_speeds_with_the_classic_ones(readme, monkeypatch, capsys):
    call(monkeypatch, "8")
    machine, empty, head, _, row = capsys.readouterr().out.splitlines()
    assert torch.__version__ in machine
    assert empty == ""
    assert head == f"| {' | '.join(throughput.HEADS)} |"
    assert row == "| 8 | 1,000 | 4,500 (4.5×) | 300 | 1,200 (4.0×) |"


def test_readme_gets_the_table_on_demand(readme, monkeypatch, capsys):
    call(monkeypatch, "8", "--readme")
    table = capsys.readouterr().out.strip()
    expected = f"a\n<!-- throughput -->\n\n{table}\n\n<!-- /throughput -->\nb\n"
    assert readme.read_text() == expected


def test_readme_stays_without_the_option(readme, monkeypatch):
    before = readme.read_text()
    call(monkeypatch, "8")
    assert readme.read_text() == before


def test_benchmark_runs_from_start_to_end(monkeypatch, capsys, steps):
    monkeypatch.setattr(throughput, "IMAGES", 8)
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    call(monkeypatch, "9")
    assert "\n| 9 | " in capsys.readouterr().out


def test_committed_table_has_the_benchmarks_columns():
    head = f"| {' | '.join(throughput.HEADS)} |"
    assert head in throughput.README.read_text("utf-8")
