"""llama.cpp's own server (the package `xllamacpp`): python llama_server.py FILE PORT ROWS CONTEXT

CONTEXT is of one text; as many texts as there are rows are written at once.
"""

import os
import signal
import sys

import xllamacpp


def main() -> None:
    path, port, rows, context = sys.argv[1:]
    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.hostnames, settings.port = ["127.0.0.1"], int(port)
    settings.n_parallel = int(rows)
    settings.n_ctx = int(context) * int(rows)
    settings.n_gpu_layers = 0
    settings.verbosity = -1
    threads = int(os.environ["OMP_NUM_THREADS"])
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    os._exit(0)  # its threads would keep the process alive


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    main()
