"""What the benchmark suite counts and writes; its times are no test's business."""

import csv
import io
import time
from dataclasses import asdict

import pytest
import torch
from torch import nn

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from rich.console import Console

from benchmarks import bench_models, gate, harness, pictures, report, results, run
from benchmarks.cases import BYTES, FORWARD, STEP, TRAIN, Problem, dims
from benchmarks.conv2d_networks import LAYERS
from benchmarks.models import mobilenet_v2, resnet18, resnet50
from benchmarks.saved import saved_bytes
from tilewright.testing import ops_called

NEW_COLUMNS = ("copies", "saved_native", "saved_ours", "axis", "kind", "network")


def _row(shape: str, **values: object) -> results.Row:
    row = results.Row(
        "dropout", "dropout", shape, "contiguous", "fp32", TRAIN, "native", 2, "avx2", "ok", 4.0, 2.0, 2.0
    )
    row.rate, row.unit, row.roofline, row.copy_gbs = 30.0, "GB/s", 0.5, 60.0
    for name, value in values.items():
        setattr(row, name, value)
    return row


def _saved(function) -> int:
    x, w = torch.randn(10, 20), torch.randn(20)
    return saved_bytes(function, Problem([x, w], function, function, {}))


def test_a_storage_counts_once_and_inputs_do_not():
    assert _saved(lambda x, w: x * w) == 0
    assert _saved(lambda x, w: x[2:] * w) == 0  # a view of an input
    assert _saved(lambda x, w: x.exp().sin()) == 10 * 20 * 4  # exp keeps its result, sin its input: the same
    assert _saved(lambda x, w: x.exp()[:5].sin()) == 10 * 20 * 4  # a part keeps the whole alive
    assert _saved(lambda x, w: (x.exp().exp(), w.exp())) == (2 * 10 * 20 + 20) * 4


def test_rows_from_before_the_columns_still_read(tmp_path):
    path = tmp_path / "dropout.csv"
    old = {name: value for name, value in asdict(_row("8x8")).items() if name not in NEW_COLUMNS}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(old))
        writer.writeheader()
        writer.writerow(old)
    results.write(path, [_row("9x9", copies=1.5, saved_native=800, saved_ours=108, axis=BYTES)])
    first, second = results.read(path)
    assert (first.copies, first.saved_native, first.saved_ours, first.axis) == (0, -1, -1, "")
    assert (first.kind, first.network) == ("", "")
    assert (second.copies, second.saved_native, second.saved_ours, second.axis) == (1.5, 800, 108, BYTES)


def test_summary_says_what_is_saved_where_it_differs(tmp_path):
    rows = [
        _row("8x8", saved_native=1 << 20, saved_ours=1 << 15, copies=2.25),
        _row("9x9", saved_native=1 << 20, saved_ours=1 << 17, copies=4.75),
        _row("8x8", form="masked_scale", saved_native=64, saved_ours=64),
        _row("8x8", form="old"),
    ]
    results.write(tmp_path / "dropout.csv", rows)
    report.write_summary(tmp_path, {})
    summary = (tmp_path / "summary.md").read_text()
    table = summary.split("## Saved for backward")[1].split("##")[0]
    assert "| dropout fp32 | 2 | 2 MB | 160 KB | 7.8% | 12.5% (9x9) |" in table
    assert "masked_scale" not in table
    assert "old" not in table
    assert "| dropout fp32 fwd+bwd | 2 | **2.00x** | 2.00x | 8x8 | 50% | 3.5 |" in summary


def test_cases_of_a_kind_have_a_line_beside_their_group(tmp_path):
    rows = [
        _row("8x8", op="conv2d", form="conv2d", kind="1x1", network="NiN", ratio=4.0),
        _row("9x9", op="conv2d", form="conv2d", kind="1x1", ratio=1.0),
        _row("7x7", op="conv2d", form="conv2d", kind="odd", ratio=0.5),
        _row("6x6"),
    ]
    results.write(tmp_path / "conv2d.csv", rows)
    report.write_summary(tmp_path, {})
    every, kinds, networks = (tmp_path / "summary.md").read_text().split("## What is counted")[0].split("### ")
    assert "| conv2d fp32 fwd+bwd | 3 | **1.26x** | 0.50x | 7x7 |" in every
    assert "| conv2d fp32 fwd+bwd: 1x1 | 2 | **2.00x** | 1.00x | 9x9 |" in kinds
    assert "| conv2d fp32 fwd+bwd: odd | 1 | **0.50x** | 0.50x | 7x7 |" in kinds
    assert "| conv2d fp32 fwd+bwd: NiN | 1 | **4.00x** | 4.00x | 8x8 |" in networks
    assert "dropout" in every
    assert "dropout" not in kinds + networks
    console = Console(width=100, record=True, file=io.StringIO())
    report.show(rows, console)
    assert "conv2d fp32 fwd+bwd: odd" in console.export_text()


def test_conv2d_measures_every_network_in_both_layouts_once():
    pairs = run.select(["conv2d"])
    labels = [case.label(direction) for case, direction in pairs]
    assert len(labels) == len(set(labels)) < 400
    assert all(case.kind for case, _ in pairs)
    layouts: dict[tuple[str, int], set[str]] = {}
    for case, _ in pairs:
        if case.network:
            layouts.setdefault((case.network, dims(case.shape.split()[0])[0]), set()).add(case.layout)
    networks = {layer.network for layer in LAYERS}
    assert {"LeNet", "AlexNet", "VGG", "NiN", "GoogLeNet", "ResNet", "MobileNet", "ConvNeXt", "U-Net"} <= networks
    for network in networks - {"ViT"}:
        assert layouts[network, 1] == layouts[network, 8] == {"NCHW", "NHWC"}


def _tiny(classes: int) -> nn.Module:
    body = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def _model_case(direction: str, **options: object):
    network = bench_models._Network("tiny", _tiny, "4x3x10", 3)
    return bench_models._case(network, direction, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_step_of_a_model_is_gated_and_updates_both_sides(dtype, layout):
    case = _model_case(STEP, dtype=dtype, layout=layout)
    problem = case.build()
    assert gate.check(case, problem, STEP) == ""
    torch.manual_seed(0)
    for function in (problem.native, problem.ours):
        step = harness.make_call(function, problem, STEP)
        losses = [step().item() for _ in range(200)]
        assert sum(losses[-20:]) < sum(losses[:20])
    assert "tilewright::batch_norm_act" in str(ops_called(lambda: problem.ours(*problem.inputs)))
    assert "tilewright" not in str(ops_called(lambda: problem.native(*problem.inputs)))


def _wrong(model: nn.Module, change) -> nn.Module:
    change(model)
    return model


@pytest.mark.parametrize(
    ("direction", "change", "reason"),
    [
        (STEP, lambda m: m[0].weight.register_hook(lambda g: 1.1 * g), "gradients: "),
        (STEP, lambda m: m[0].register_forward_hook(lambda *args: args[2].detach()), "RuntimeError: "),
        (STEP, lambda m: m[-1].register_forward_hook(lambda *args: 1.001 * args[2]), "loss: "),
        (FORWARD, lambda m: m[-1].register_forward_hook(lambda *args: 1.0001 * args[2]), "results: "),
    ],
)
def test_a_model_with_a_wrong_layer_gets_no_time(monkeypatch, direction, change, reason):
    case = _model_case(direction)
    assert gate.check(case, case.build(), direction) == ""
    monkeypatch.setattr("tilewright.accelerate", lambda model: _wrong(model, change))
    timing, found = harness.measure(case, case.build(), direction)
    assert timing is None
    assert found.startswith(reason)


def test_match_chooses_by_class_network_or_name():
    kinds = {case.kind for case, _ in run.select(["conv2d"], match="Depthwise")}
    assert kinds == {
        "depthwise",
        "depthwise (one image)",
    }
    assert {case.network for case, _ in run.select(["conv2d", "models"], match="u-net")} == {"U-Net"}
    assert len(run.select(["conv2d"], match="1x64x56 3x3->64 NCHW fp32 fwd+bwd")) == 1


def test_options_that_no_case_fits_are_an_error(monkeypatch, capsys, tmp_path):
    for name, value in harness.MALLOC.items():  # or it starts itself again
        monkeypatch.setenv(name, value)
    threads = str(torch.get_num_threads())
    arguments = ["conv2d", "--match", "no such case", "--results", str(tmp_path), "--threads", threads]
    assert run.main(arguments) == 1
    assert "no case of conv2d fits --match" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_models_are_few_and_of_the_sizes_of_the_papers():
    pairs = run.select(["models"])
    assert len(pairs) == len({case.label(direction) for case, direction in pairs}) <= 12
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in m(1000).parameters()) for m in (resnet18, resnet50, mobilenet_v2)]
    assert sizes == [11_689_512, 25_557_032, 3_504_872]


@pytest.mark.parametrize(("sweep", "pairs"), [(True, 5), (False, 15)])
def test_long_calls_of_a_sweep_are_timed_less_often(monkeypatch, sweep, pairs):
    monkeypatch.setattr(harness, "LONG_SECONDS", 1e-3)
    monkeypatch.setattr(harness, "MIN_SECONDS", 0.0)
    timing = harness.time_pairs(lambda: time.sleep(2e-3), lambda: None, sweep=sweep)
    assert timing.pairs == pairs
    assert harness.time_pairs(lambda: None, lambda: None, sweep=sweep).pairs == 15


@pytest.mark.parametrize("op", ["layer_norm", "batch_norm", "dropout"])
def test_sweeps_go_from_a_row_to_a_gigabyte(op):
    panels: dict[tuple[str, str, str], list] = {}
    for case, direction in run.select([op], sweep=True):
        if direction == TRAIN:
            panels.setdefault((case.form, case.layout, case.axis), []).append(case)
    for (_, _, axis), cases in panels.items():
        sizes = [case.size for case in cases]
        assert sizes == sorted(set(sizes))
        if axis == BYTES:
            assert sizes[0] <= 3072
            assert 0.99 * 2**30 < sizes[-1] <= 2**30
        for case in cases:
            assert (case.gate_on is None) == (axis != BYTES or case.size <= 2**26)
    largest = max((case for cases in panels.values() for case in cases), key=lambda case: case.size)
    assert 2**24 < largest.gate_on().inputs[0].nbytes <= 2**26


def test_sweep_picture_has_two_panels_for_each_function_and_axis(tmp_path, monkeypatch):
    figures, make = [], pictures.Figure
    monkeypatch.setattr(pictures, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    rows = [
        _row(str(size), form=form, size=float(size), axis=axis, direction=direction)
        for form, axis in (("dropout", BYTES), ("dropout_add", BYTES), ("dropout", "columns"))
        for size in (1024, 4096, 16384)
        for direction in ("fwd", "fwd+bwd")
    ]
    pictures.sweep(rows, "dropout", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert len(figures[0].axes) == 6
    assert [len(axis.lines) for axis in figures[0].axes] == [5, 5, 5, 3, 3, 3]
    assert figures[0].axes[3].get_xlabel() == BYTES
