import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from aol.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from aol.training.run_folder import RunFolder
from benchmarks import epochs
from benchmarks.epochs import Times, measure, random_images, timing_key
from tests.support.shell import PROJECT

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    model=ModelConfig(kind="conv", width=1 / 8),
    data=DataConfig(name="cifar10"),
    loss=LossConfig(offset=2**0.5, temperature=0.25),
    batch_size=40,
    eval_every=10,
)
SMALL = ["--device", "cpu", "--images", "80", "--epochs", "6"]


@pytest.fixture
def plan(tmp_path):
    """
    Write a plan of runs with these settings by ID.
    """

    def write(**configs):
        rows = [
            {
                "key": f"{run}-key",
                "id": int(run),
                "name": "AOL-Conv",
                "profile": "paper",
                "epochs": config.epochs,
                "settings": asdict(config),
            }
            for run, config in configs.items()
        ]
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(rows))
        return str(file)

    return write


@pytest.fixture
def trained(monkeypatch):
    """
    Return the list of trained settings with the options of their training.
    """
    seen, train = [], RunFolder.train

    def record(folder, run, **options):
        seen.append((run.config, options))
        return train(folder, run, **options)

    monkeypatch.setattr(RunFolder, "train", record)
    return seen


@pytest.mark.slow
def test_rates_are_printed_and_written_in_the_format_of_the_campaign(tmp_path, capsys):
    """
    The campaign itself reads them: with a billion epochs no run fits into its minutes.
    """
    file = tmp_path / "folder" / "rates.json"
    code = epochs.main(["AOL-Conv", *SMALL, "--width", "0.125", "--rates", str(file)])
    *lines, printed = capsys.readouterr().out.splitlines()
    rates = json.loads(printed)

    assert code == 0
    assert json.loads(file.read_text()) == rates
    assert list(rates) == ["AOL-Conv"]
    assert rates["AOL-Conv"] > 0
    assert lines[-1].startswith("AOL-Conv, tf32: epoch ")
    (tmp_path / "plan.json").write_text(
        json.dumps([{"id": 11, "key": "11-key", "name": "AOL-Conv", "epochs": 10**9}])
    )
    arguments = ["--runs", "11", "--minutes", "2", "--rates", file, "--collect", "home"]
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts" / "campaign.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"run 11 needs {10**9 * rates['AOL-Conv'] + 20:.0f} s" in done.stdout


@pytest.mark.slow
def test_runs_of_a_plan_that_take_the_same_time_are_measured_once(plan, trained, capsys):
    """
    Seeds, losses and schedules do not change the time; the precision does.
    """
    short = replace(CONFIG, epochs=10, eval_every=1, seed=7)
    other_loss = replace(CONFIG, loss=LossConfig(offset=1.0, temperature=2.0))
    bf16 = replace(CONFIG, precision="bf16")
    file = plan(**{"0": CONFIG, "20": short, "24": other_loss, "11": bf16})
    code = epochs.main(["--plan", file, *SMALL])
    rates = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert code == 0
    assert [config.precision for config, _ in trained] == ["float32", "bf16"]
    assert list(rates) == ["0", "20", "24", "11"]
    assert rates["0"] == rates["24"] < rates["20"]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "recorded"), [((), True), (("--eager",), False)])
def test_steps_are_recorded_unless_eager(trained, options, recorded):
    assert epochs.main(["AOL-Conv", *SMALL, "--width", "0.125", *options]) == 0
    assert [kept["cuda_graph"] for _, kept in trained] == [recorded]


def test_a_measurement_trains_like_a_run(trained):
    """
    It augments, evaluates, saves after every epoch and certifies, with a constant learning rate.
    """
    images = random_images(CONFIG, 80, CPU)
    times = measure(CONFIG, images, CPU, 6)
    ((config, options),) = trained

    assert config.data.augment
    assert (config.epochs, config.eval_every, config.optimizer.drops) == (6, 2, ())
    assert options["save_every_s"] == 0
    assert options["cuda_graph"]
    assert min(times.epoch, times.saving, times.end) > 0


def test_random_images_have_the_number_and_classes_of_the_run():
    config = replace(CONFIG, data=DataConfig(name="cifar100", train_limit=300))
    train, test = random_images(config, None, CPU)
    few, fewer = random_images(config, 80, CPU)

    assert (len(train), len(test)) == (300, 10_000)
    assert (len(few), len(fewer)) == (80, 16)
    assert int(test.labels.max()) == 99
    assert train.pixels.shape == (300, 3, 32, 32)
    assert train.pixels.is_contiguous(memory_format=torch.channels_last)


def test_a_rate_divides_occasional_times_among_the_epochs():
    times = Times(epoch=1.0, evaluation=0.5, saving=6.0, end=100.0)

    assert times.rate(CONFIG) == pytest.approx((1 + 0.05) * 1.1 + 0.1)
    assert times.rate(replace(CONFIG, eval_every=1, epochs=10)) == pytest.approx(1.5 * 1.1 + 10)


def test_times_are_medians_of_warm_epochs():
    """
    Of eight epochs the first two are left out and the last one is separate.
    """
    config = replace(CONFIG, epochs=8, eval_every=2)
    seconds = [9.0, 9.0, 1.0, 1.5, 1.1, 1.6, 0.9, 4.0]
    epoch_ends = [10.0]
    for took in seconds[1:]:
        epoch_ends.append(epoch_ends[-1] + took + 0.25)
    found = epochs._times(config, seconds, epoch_ends, epoch_ends[-1] + 2.25)

    assert found.epoch == 1.0
    assert found.evaluation == pytest.approx(0.55)
    assert found.saving == pytest.approx(0.25)
    assert found.end == pytest.approx(3.0 + 2.0)


def test_datasets_with_equal_images_share_their_times():
    hundred = replace(CONFIG, data=DataConfig(name="cifar100"))
    fewer = replace(CONFIG, data=DataConfig(name="cifar10", train_limit=100))

    assert timing_key(hundred) == timing_key(CONFIG) != timing_key(fewer)


@pytest.mark.slow
def test_a_network_that_diverges_does_not_affect_the_others(plan, tmp_path, capsys):
    diverges = replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e30))
    kept = tmp_path / "rates.json"
    file = plan(**{"0": diverges, "11": CONFIG})
    code = epochs.main(["--plan", file, *SMALL, "--rates", str(kept)])

    assert code == 1
    assert list(json.loads(kept.read_text())) == ["11"]
    assert "training diverged, so there is nothing to measure" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "no plan", "[{}]"])
def test_an_invalid_plan_is_a_one_line_error(tmp_path, capsys, content):
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)
    code = epochs.main(["--plan", str(file), *SMALL])

    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith(f"{file}: ")
    assert err.endswith("pass the output of `plan --json`\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["AOL-Tiny"], "unknown: AOL-Tiny; the networks are AOL-Small"),
        (["--epochs", "5"], "--epochs: at least 6, got 5"),
    ],
)
def test_invalid_options_are_reported(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        epochs.main(arguments)
    assert message in capsys.readouterr().err
