#!/usr/bin/env python3
"""The side-by-side of `expertmesh bench engine`: the same model in PyTorch and transformers, with random weights, timed in
the same way. Prompts of --input-len tokens, at most --prefill-tokens of them a step; then decode steps with a greedy choice
in each, behind the prompt's positions, in transformers' default cache. Tokens are random, and not those chosen: a model of
random weights repeats itself, and with that its choice of experts. Exit code 77 where torch, transformers or the device is
missing, or the device has no room; the last line of standard output says which."""
import argparse
import inspect
import json
import os
import statistics
import sys
import time

SKIPPED = 77
UNTIMED_STEPS = 3
PROBED_STEPS = 3
SHARE_OF_MEMORY = 0.9  # of the device, that weights may take: rows and caches take the rest
SHARE_FOR_COPIES = 0.5  # of what is free then, that copies of experts may take


def leave_out(why):
    print(f"left out: {why}")
    sys.exit(SKIPPED)


def sizes(text):
    values = [int(number) for number in text.split(",")]
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,8,32, got '{text}'")
    return values


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a config.json")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--batch-sizes", type=sizes, default=[1, 8, 32, 128, 256])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=16, help="decode steps that are timed")
    parser.add_argument("--prefill-tokens", type=int, default=4096)
    parser.add_argument("--json", help="file for all figures, written anew after each batch size")
    return parser.parse_args()


def import_them(device):
    """-> torch, transformers"""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: of its libraries one is missing
        leave_out(f"there is no torch ({error})")
    try:
        import transformers
        transformers.AutoModelForCausalLM  # imported when it is first asked for
    except (ImportError, AttributeError) as error:
        leave_out(f"there is no transformers ({error})")
    if device.startswith("cuda") and not torch.cuda.is_available():
        leave_out("torch finds no CUDA device")
    return torch, transformers


class Bench:
    def __init__(self, options):
        self.options = options
        self.torch, self.transformers = import_them(options.device)
        self.device = self.torch.device(options.device)
        self.on_gpu = self.device.type == "cuda"
        with open(options.config, encoding="utf-8") as file:
            fields = json.load(file)
        stored = fields.pop("quantization_config", {}).get("quant_method")
        self.dtype = "bfloat16" + (f" (not {stored}, as the config has them)" if stored else "")
        family = fields.pop("model_type")
        try:
            self.config = self.transformers.AutoConfig.for_model(family, **fields)
            self.build()
        except ImportError as error:  # a torch too old for transformers
            leave_out(str(error).strip().splitlines()[0])
        except ValueError as error:
            leave_out(f"transformers {self.transformers.__version__} has no {family} ({error})")

    # ---- the model

    def new_model(self, device):
        torch = self.torch
        error = None
        for self.attention in ("sdpa", "eager"):  # sinks, for one, are not in every version's sdpa
            for name in ("dtype", "torch_dtype"):  # of transformers 5, and of 4
                try:
                    with torch.device(device):
                        return self.transformers.AutoModelForCausalLM.from_config(
                            self.config, attn_implementation=self.attention, **{name: torch.bfloat16})
                except (TypeError, ValueError) as raised:
                    error = raised
        raise error

    def build(self):
        torch = self.torch
        shapes = self.new_model("meta")
        named = list(shapes.named_parameters())
        self.weight_bytes = sum(p.numel() for _, p in named) * 2
        self.parameters = self.weight_bytes // 2
        self.expert_bytes = sum(p.numel() for name, p in named if ".experts." in name) * 2
        self.embedding_bytes = shapes.get_input_embeddings().weight.numel() * 2
        self.tied = shapes.get_output_embeddings() is None or \
            shapes.get_output_embeddings().weight is shapes.get_input_embeddings().weight
        del shapes, named
        if self.on_gpu:
            free = torch.cuda.mem_get_info(self.device)[0]
            if self.weight_bytes > SHARE_OF_MEMORY * free:
                leave_out(f"needs {self.weight_bytes / 1e9:.1f} GB for weights, {SHARE_OF_MEMORY * free / 1e9:.1f} GB may be used")
        torch.manual_seed(0)
        self.model = self.new_model(self.device).eval()
        self.can_choose_experts = hasattr(self.model, "set_experts_implementation")
        arguments_of_forward = inspect.signature(type(self.model).forward).parameters  # their names have changed
        self.cache_name = "cache" if "cache" in arguments_of_forward else "past_key_values"
        self.last_logits = {name: 1 for name in ("logits_to_keep", "num_logits_to_keep") if name in arguments_of_forward}

    @property
    def num_experts(self):
        return next((getattr(self.config, name) for name in ("num_local_experts", "num_experts", "n_routed_experts")
                     if getattr(self.config, name, None)), 1)

    def expected_bytes(self, batch_size):
        """of weights that a decode step reads, were every expert as likely as any other"""
        per_token = getattr(self.config, "num_experts_per_tok", 1)
        hit = 1 - (1 - per_token / self.num_experts) ** batch_size
        rows = batch_size * self.embedding_bytes // self.config.vocab_size
        others = self.weight_bytes - self.expert_bytes - (0 if self.tied else self.embedding_bytes)
        return others + rows + int(hit * self.expert_bytes)

    # ---- steps

    def synchronize(self):
        if self.on_gpu:
            self.torch.cuda.synchronize(self.device)

    def random_tokens(self, batch_size, count):
        return self.torch.randint(self.config.vocab_size, (batch_size, count), device=self.device)

    def step(self, tokens, cache=None):
        """-> the cache, seconds"""
        self.synchronize()
        if self.on_gpu:
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        else:
            begin = time.perf_counter()
        out = self.model(input_ids=tokens, use_cache=True, **{self.cache_name: cache}, **self.last_logits)
        out.logits[:, -1].argmax(-1)
        if self.on_gpu:
            end.record()
            end.synchronize()
            return out[self.cache_name], begin.elapsed_time(end) / 1e3
        return out[self.cache_name], time.perf_counter() - begin

    def decode(self, batch_size, cache, count):
        """-> the cache, seconds of each step"""
        seconds = []
        for _ in range(count):
            cache, taken = self.step(self.random_tokens(batch_size, 1), cache)
            seconds.append(taken)
        return cache, seconds

    def prefill(self, batch_size):
        """-> seconds of all prompts, as many a step as --prefill-tokens lets"""
        at_once = max(1, self.options.prefill_tokens // self.options.input_len)
        total = 0
        for first in range(0, batch_size, at_once):
            count = min(at_once, batch_size - first)
            total += self.step(self.random_tokens(count, self.options.input_len))[1]
        return total

    # ---- the experts

    def ways_to_decode(self, batch_size):
        """names of transformers; batched_mm copies an expert for each token that goes to it"""
        slots = batch_size * getattr(self.config, "num_experts_per_tok", 1)
        copies = slots * self.expert_bytes // (self.num_experts * max(1, self.config.num_hidden_layers))
        fits = not self.on_gpu or copies < SHARE_FOR_COPIES * self.torch.cuda.mem_get_info(self.device)[0]
        return ["grouped_mm"] + ["batched_mm"] * fits

    def fastest(self, ways, measure):
        """Chooses the way whose measure() is the least. -> its name"""
        times, error = {}, None
        for way in ways + ["eager"] if self.can_choose_experts else ["as transformers has them"]:
            if way == "eager" and times:
                break  # a loop over the experts, and slow: where nothing else works
            try:
                if self.can_choose_experts:
                    self.model.set_experts_implementation(way)
                times[way] = measure()
            except (ValueError, RuntimeError, ImportError, NotImplementedError) as raised:  # out of memory is a RuntimeError
                error = raised
        if not times:
            raise error
        best = min(times, key=times.get)
        if self.can_choose_experts:
            self.model.set_experts_implementation(best)
        return best

    def measure(self, batch_size):
        options = self.options

        prefill_way = self.fastest(["grouped_mm"], lambda: self.prefill(batch_size))
        prefill = statistics.median(self.prefill(batch_size) for _ in range(3))
        cache = self.step(self.random_tokens(batch_size, options.input_len))[0]

        def some_steps():
            nonlocal cache
            cache, seconds = self.decode(batch_size, cache, PROBED_STEPS)
            return min(seconds[1:])

        way = self.fastest(self.ways_to_decode(batch_size), some_steps)
        cache, _ = self.decode(batch_size, cache, UNTIMED_STEPS)
        cache, seconds = self.decode(batch_size, cache, options.output_len)
        step = statistics.median(seconds)
        tokens = batch_size * options.input_len
        return {"batch_size": batch_size,
                "prefill": {"tokens": tokens, "duration_ms": prefill * 1e3, "tokens_per_second": tokens / prefill,
                            "experts": prefill_way},
                "decode": {"steps": options.output_len, "median_step_ms": step * 1e3,
                           "mean_step_ms": statistics.fmean(seconds) * 1e3, "tokens_per_second": batch_size / step,
                           "experts": way, "expected_weight_bytes_per_step": self.expected_bytes(batch_size)}}

    # ---- what came out

    def device_name(self):
        return self.torch.cuda.get_device_name(self.device) if self.on_gpu else "cpu"

    def write(self, results):
        if not self.options.json:
            return
        figures = {"benchmark": "torch", "model": self.options.config, "parameters": self.parameters, "dtype": self.dtype,
                   "device": self.device_name(), "torch": self.torch.__version__,
                   "transformers": self.transformers.__version__, "attention": self.attention,
                   "input_len": self.options.input_len, "output_len": self.options.output_len,
                   "prefill_tokens": self.options.prefill_tokens, "results": results}
        part = self.options.json + ".part"
        with open(part, "w", encoding="utf-8") as file:
            file.write(json.dumps(figures, indent=2) + "\n")
        os.replace(part, self.options.json)

    def run(self):
        """-> the figures of every batch size that had room"""
        results = []
        out_of_memory = getattr(self.torch, "OutOfMemoryError", self.torch.cuda.OutOfMemoryError)
        for batch_size in self.options.batch_sizes:
            print(f"batch size {batch_size}", file=sys.stderr, flush=True)
            try:
                with self.torch.inference_mode():
                    results.append(self.measure(batch_size))
            except out_of_memory as error:
                print(f"B {batch_size}: left out, {str(error).splitlines()[0]}", flush=True)
            if self.on_gpu:
                self.torch.cuda.empty_cache()
            self.write(results)
        return results

    def print_table(self, results):
        options = self.options
        print(f"model      {options.config}: {self.parameters / 1e6:.0f} M parameters, {self.dtype}\n"
              f"torch      {self.torch.__version__}, transformers {self.transformers.__version__} on {self.device_name()}, "
              f"attention {self.attention}\n")
        print(f"prefill    {options.input_len} tokens a prompt, {options.prefill_tokens} a step\n"
              f"{'B':>5}{'tokens':>10}{'tok/s':>10}  experts")
        for result in results:
            prefill = result["prefill"]
            print(f"{result['batch_size']:>5}{prefill['tokens']:>10}{prefill['tokens_per_second']:>10.1f}  {prefill['experts']}")
        print(f"\ndecode     {options.output_len} steps; weights: what a step reads, were every expert as likely as any other\n"
              f"{'B':>5}{'step ms':>10}{'tok/s':>10}{'weights MB':>12}{'GB/s':>9}  experts")
        for result in results:
            decode = result["decode"]
            weights = decode["expected_weight_bytes_per_step"]
            print(f"{result['batch_size']:>5}{decode['median_step_ms']:>10.2f}{decode['tokens_per_second']:>10.1f}{weights / 1e6:>12.1f}"
                  f"{weights / decode['median_step_ms'] / 1e6:>9.1f}  {decode['experts']}")


def main():
    bench = Bench(arguments())
    results = bench.run()
    bench.print_table(results)
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
