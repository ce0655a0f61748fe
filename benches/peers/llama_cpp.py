#!/usr/bin/env python3
"""Times llama.cpp, through llama-cpp-python's low-level calls, on a GGUF file without vocabulary.

    llama_cpp.py FILE.gguf [--threads 2] [--context 128] [--steps 32] [--repeat 3]

Prints Markdown rows: prefill of 512 tokens, decode at batch 1, decode at batch 16; the best of the
repetitions, as the machine is shared. With --greedy IDS (a comma-separated prompt) it prints 16 ids
that greedy decoding gives instead, to check the conversion.
"""

import argparse
import sys
import time

# This file is called like the package it imports: its own folder must not come first.
sys.path.pop(0)
import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402

PREFILL = 512
BATCH = 16


class Model:
    """A loaded model and a context for up to 16 sequences."""

    def __init__(self, path, threads, context):
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.quiet = quiet  # called for as long as the library lives
        llama_cpp.llama_log_set(quiet, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            sys.exit(f"llama.cpp does not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(BATCH * context, 2 * PREFILL)
        params.n_batch = 2048
        params.n_ubatch = 512
        params.n_seq_max = BATCH
        params.kv_unified = True  # or one sequence gets a sixteenth of n_ctx
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp makes no context")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def clear(self):
        """Forgets every sequence."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)

    def step(self, rows):
        """Computes rows of (token, position, sequence, logits wanted) and waits for the result."""
        self.batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[at] = token
            self.batch.pos[at] = position
            self.batch.n_seq_id[at] = 1
            self.batch.seq_id[at][0] = sequence
            self.batch.logits[at] = wanted
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status != 0:
            sys.exit(f"llama_decode failed: {status}")
        llama_cpp.llama_synchronize(self.context)

    def logits(self):
        """The last row's logits."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (self.vocab,))


def prefill(model, tokens):
    """Seconds for a prompt."""
    model.clear()
    rows = [(token, at, 0, at == len(tokens) - 1) for at, token in enumerate(tokens)]
    start = time.perf_counter()
    model.step(rows)
    return time.perf_counter() - start


def decode(model, tokens, sequences, context, steps):
    """Seconds for `steps` steps of `sequences` sequences that hold `context` tokens each."""
    model.clear()
    for sequence in range(sequences):
        model.step([(tokens[at], at, sequence, False) for at in range(context)])
    start = time.perf_counter()
    for step in range(steps):
        at = context + step
        model.step([(tokens[at + sequence], at, sequence, True) for sequence in range(sequences)])
    return time.perf_counter() - start


def greedy(model, prompt):
    """16 ids after `prompt`."""
    ids = []
    model.clear()
    rows = [(token, at, 0, at == len(prompt) - 1) for at, token in enumerate(prompt)]
    for _ in range(16):
        model.step(rows)
        ids.append(int(model.logits().argmax()))
        rows = [(ids[-1], len(prompt) + len(ids) - 1, 0, True)]
    return ids


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--greedy")
    args = parser.parse_args()
    model = Model(args.file, args.threads, args.context + args.steps)
    if args.greedy:
        print(greedy(model, [int(token) for token in args.greedy.split(",")]))
        return
    tokens = np.random.default_rng(1).integers(3, model.vocab, 4096).tolist()

    prefill(model, tokens[:PREFILL])  # reads the weights from disk
    best = min(prefill(model, tokens[:PREFILL]) for _ in range(args.repeat))
    rows = [(f"prefill {PREFILL}", PREFILL / best)]
    for sequences in (1, BATCH):
        times = [
            decode(model, tokens, sequences, args.context, args.steps) for _ in range(args.repeat)
        ]
        rows.append((f"decode, batch {sequences}", sequences * args.steps / min(times)))
    print("| engine | load | tokens/s |\n|---|---|---|")
    for load, rate in rows:
        print(f"| llama-cpp-python {llama_cpp.__version__}, {args.threads} threads | {load} | {rate:.1f} |")


if __name__ == "__main__":
    main()
