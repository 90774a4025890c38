"""How fast `grad_dots` is: against forming gradients and multiplying them, and against what the hardware can do.

    python benchmarks/bench_grad_dots.py --device cpu --out /tmp/bench_grad_dots.jsonl
    python benchmarks/bench_grad_dots.py --device cuda --out /tmp/bench_grad_dots.jsonl [--sweep]

On the CPU: the time of `grad_dots` over that of the plain weight gradient. On CUDA: the layers of a
1B-class proxy (width 896, MLP 4864, key and value heads 128), also against `torch.compile` of `bmm` and `matmul`, made
for each shape, with the roofline beside the JSONL. Times there are those of CUDA graphs, without Python's;
`time_with_python` has both. What gives inner products is compared with float64 before it is timed.
`--sweep` times every configuration of the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from _kernels import Spread, captured, draw_roofline, interleaved, measure_ceilings, rates, ratios, refuse_unless
from _record import Recorder
from torch import Tensor

from ostlight_kernels import explain_dispatch, grad_dots
from ostlight_kernels.tiles import table

LAYERS = ((896, 896), (128, 896), (4864, 896), (896, 4864))
"""D_out, D_in of the proxy's linear layers."""

TOKENS, VECTORS = 512, 17


def inputs(n: int, t: int, d_out: int, d_in: int, m: int, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(0)
    sizes = ((n, t, d_in), (n, t, d_out), (m, d_out, d_in))
    return tuple(torch.randn(s, generator=generator, device=device, dtype=torch.float32).to(dtype) for s in sizes)


def weight_gradients(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(b.mT, a)


def form_and_multiply(a: Tensor, b: Tensor, vectors: Tensor) -> Tensor:
    return torch.matmul(torch.bmm(b.mT, a).flatten(1), vectors.flatten(1).T)


def per_vector(a: Tensor, b: Tensor, vectors: Tensor) -> Tensor:
    return torch.stack([((a @ vector.mT) * b).sum((1, 2)) for vector in vectors], 1)


def check_against_float64(name: str, got: Tensor, a: Tensor, b: Tensor, vectors: Tensor) -> None:
    """Of the first samples, so that the float64 gradients fit."""
    few = slice(0, min(len(a), 4))
    gradients = torch.bmm(b[few].double().mT, a[few].double()).flatten(1)
    flat = vectors.double().flatten(1).T
    expected, rounded = gradients @ flat, gradients.to(a.dtype).double() @ flat
    # Plain PyTorch rounds its sums to their dtype too, in parts at that.
    summed = expected.abs().max() * max(1e-5, 4 * torch.finfo(got.dtype).eps)
    error, allowed = (got[few] - expected).abs().max(), (rounded - expected).abs().max() * 1.1 + summed
    refuse_unless(bool(error <= allowed), f"{name} is off by {error:.3g} where {allowed:.3g} is allowed")


def on_cpu(recorder: Recorder, rounds: int) -> None:
    for d_out, d_in in ((704, 256), (256, 704)):
        a, b, vectors = inputs(16, 128, d_out, d_in, VECTORS, "cpu", torch.float32)
        for function in (grad_dots, per_vector):
            check_against_float64(function.__name__, function(a, b, vectors), a, b, vectors)
        seconds = interleaved(
            {
                "weight_gradient": lambda a=a, b=b: weight_gradients(a, b),
                "grad_dots": lambda a=a, b=b, vectors=vectors: grad_dots(a, b, vectors),
                "per_vector": lambda a=a, b=b, vectors=vectors: per_vector(a, b, vectors),
            },
            "cpu",
            rounds,
        )
        case = f"kernel=grad_dots M={VECTORS} T=128 N=16 dtype=fp32 layer={d_out}x{d_in}"
        ratios(seconds["grad_dots"], seconds["weight_gradient"]).record(
            recorder, case, "ratio_to_weight_gradient", "ratio"
        )
        ratios(seconds["per_vector"], seconds["weight_gradient"]).record(
            recorder, case, "per_vector_ratio_to_weight_gradient", "ratio"
        )
        for name in ("weight_gradient", "grad_dots"):
            Spread.of(seconds[name]).record(recorder, case, f"{name}_time", "s")
            # What the code takes where nothing else runs on the machine.
            recorder.add(case=case, metric=f"{name}_best", value=min(seconds[name]), unit="s", n=rounds)


def on_cuda(recorder: Recorder, rounds: int, samples: int, sweep: bool, plot: Path | None) -> None:
    ceilings = measure_ceilings(recorder)
    compiled = torch.compile(form_and_multiply, dynamic=False)
    points = {}
    for d_out, d_in in LAYERS:
        a, b, vectors = inputs(samples, TOKENS, d_out, d_in, VECTORS, "cuda", torch.bfloat16)
        print(f"{d_out}x{d_in}: {explain_dispatch(a)}")
        for name, function in (("grad_dots", grad_dots), ("bmm_matmul", form_and_multiply), ("compiled", compiled)):
            check_against_float64(name, function(a, b, vectors), a, b, vectors)
        functions: dict[str, Callable[[], object]] = {
            "grad_dots": lambda a=a, b=b, vectors=vectors: grad_dots(a, b, vectors),
            "bmm_matmul": lambda a=a, b=b, vectors=vectors: form_and_multiply(a, b, vectors),
            "bmm": lambda a=a, b=b: weight_gradients(a, b),
            "compiled": lambda a=a, b=b, vectors=vectors: compiled(a, b, vectors),
        }
        called = functions["grad_dots"]
        functions = {name: captured(function) for name, function in functions.items()}
        seconds = interleaved(functions | {"called": called}, "cuda", rounds)
        case = f"kernel=grad_dots M={VECTORS} T={TOKENS} N={samples} dtype=bf16 layer={d_out}x{d_in}"
        flops = 2.0 * samples * TOKENS * d_out * d_in
        moved = float(sum(x.numel() * x.element_size() for x in (a, b, vectors)))
        ours = seconds["grad_dots"]
        ratios(seconds["bmm_matmul"], ours).record(recorder, case, "speedup_over_bmm_matmul", "ratio")
        ratios(seconds["compiled"], ours).record(recorder, case, "speedup_over_compiled_bmm_matmul", "ratio")
        ratios(seconds["bmm"], ours).record(recorder, case, "speedup_over_bmm_alone", "ratio")
        rates(flops, ours).record(recorder, case, "gradient_flops", "FLOP/s")
        rates(flops / ceilings.flops_per_s, ours).record(recorder, case, "share_of_matmul_ceiling", "ratio")
        rates(moved, ours).record(recorder, case, "compulsory_bandwidth", "byte/s")
        rates(moved / ceilings.bytes_per_s, ours).record(recorder, case, "share_of_copy_ceiling", "ratio")
        Spread.of(seconds["called"]).record(recorder, case, "time_with_python", "s")
        points[f"{d_out}x{d_in}"] = (flops / moved, rates(flops, ours).value)
        if sweep:
            sweep_tiles(recorder, case, flops, rounds, a, b, vectors)
    if plot:
        draw_roofline(plot, f"grad_dots, bf16, T={TOKENS}, M={VECTORS}, gradient FLOPs only", ceilings, points)


def sweep_tiles(
    recorder: Recorder, case: str, flops: float, rounds: int, a: Tensor, b: Tensor, vectors: Tensor
) -> None:
    launch = import_module("ostlight_kernels.grad_dots").launch
    major, minor = torch.cuda.get_device_capability()
    for tiles in table(a.dtype, 10 * major + minor):
        got = launch(a, b, vectors, None, allow_tf32=False, tiles=tiles)
        check_against_float64(str(tiles), got, a, b, vectors)
        run = {"tiles": captured(lambda tiles=tiles: launch(a, b, vectors, None, allow_tf32=False, tiles=tiles))}
        seconds = interleaved(run, "cuda", rounds)["tiles"]
        rates(flops, seconds).record(
            recorder, f"{case} tiles={str(tiles).replace(' ', '_')}", "gradient_flops", "FLOP/s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, help="JSONL file to append to; the roofline is drawn beside it")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2, help="on the CPU; 1 where other work takes the cores")
    parser.add_argument("--samples", type=int, default=32, help="samples per call on CUDA")
    parser.add_argument("--sweep", action="store_true", help="time every configuration of the tuning table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recorder = Recorder("bench_grad_dots", options.out, options.device)
    if options.device == "cpu":
        on_cpu(recorder, options.rounds)
    else:
        plot = options.out.with_suffix(".roofline.png") if options.out else None
        on_cuda(recorder, options.rounds, options.samples, options.sweep, plot)


if __name__ == "__main__":
    main()
