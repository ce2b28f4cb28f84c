# Each target makes the environment it needs, once; a changed pyproject.toml updates it.
PYTHON ?= python3
ARGS ?=
DEMO := .venv-demo
TEST := .venv-test
DOCS := .venv-docs
# The peers cannot share an environment: TFMOT needs Keras 2, and an older NumPy with it. Without
# pins, pip looks for versions that go together for minutes.
PEERS := .venv-peers
AI_EDGE_QUANTIZER := ai-edge-quantizer==0.10.0
TFMOT := tensorflow-cpu==2.18.1 tf_keras==2.18.0 tensorflow-model-optimization==0.8.0
# Pinned, so that the tests do not change with a release of it.
TORCH := torch==2.13.0
# What backends that compile run, with one case of each op: most of a run is compiling. PyTorch
# runs all, and alone what does not depend on the backend.
COMPILED ?= --cases 1 $(addprefix tests/test_, $(addsuffix .py, backend_functions distributed \
	exact_graphs fixed_point kernels numerics observers ops quantizers \
	states table tracing training wide) \
	keeping.py::test_zeros_stay \
	keeping.py::test_the_gradient_of_a_cluster_is_the_mean \
	lstm.py::test_calls_in_a_row_equal_litert \
	lstm.py::test_training_computes_what_the_kernel_does \
	quantized_model.py::test_a_graph_is_trained_by_its_own_class \
	schedule.py::test_batch_norm_freezes_at_a_step \
	schedule.py::test_ranges_freeze_at_a_step \
	schedule.py::test_steps_are_counted_once_a_step \
	uses.py::test_a_sample_tells_the_same \
	uses.py::test_a_smaller_last_batch \
	uses.py::test_backend_and_host_agree) \
	--deselect tests/test_wide.py::test_recurrent_layers_and_attention \
	--deselect tests/test_training.py::test_saved_model_is_the_same_on_another_backend
# KerasHub without TensorFlow and its text ops, which its tokenizers alone need.
HUB := keras-hub==0.32.0
# The slowest tests end the log.
SLOWEST := --durations=15 --durations-min=5
# The oldest Keras and LiteRT that are supported.
OLDEST := keras==3.13.0 ai-edge-litert==2.2.0

export TF_CPP_MIN_LOG_LEVEL ?= 3
# Of two workers on two cores, more threads would wait for each other, and take several times as long.
test coverage test-jax test-tensorflow test-oldest: export OMP_NUM_THREADS ?= 1
test coverage test-jax test-tensorflow test-oldest: export TF_NUM_INTRAOP_THREADS ?= 1
test coverage test-jax test-tensorflow test-oldest: export TF_NUM_INTEROP_THREADS ?= 1

.PHONY: help demo test coverage test-jax test-tensorflow test-oldest lint docs zoo peers clean

help:
	@echo 'make demo             train, quantize, export and run a small CNN, on JAX'
	@echo '                      (ARGS="--dataset fashion_mnist" passes options on)'
	@echo 'make test             run all tests on PyTorch, which compiles nothing'
	@echo 'make coverage         the same, and measure the coverage, which takes 1.7 times as long'
	@echo 'make test-jax         run the tests that depend on the backend on JAX, with one case of each op'
	@echo '                      (COMPILED=tests for all tests, which take long to compile)'
	@echo 'make test-tensorflow  the same on TensorFlow'
	@echo 'make test-oldest      the ops and training on PyTorch, with the oldest Keras'
	@echo 'make lint             check style and types'
	@echo 'make docs             build the site into site/, and run the notebooks; a warning is an error'
	@echo 'make zoo              measure the models of the zoo that need no training, and write docs/results.md'
	@echo 'make peers            measure other tools and intact in turns, and write docs/peers.md; takes hours'
	@echo '                      (ARGS="--models resnet20,gru --parts files,latency" measures some of it)'
	@echo 'make clean            remove the environments that these made'
	@echo 'PYTHON=python3.12     chooses the Python, 3.11 or newer'

demo: $(DEMO)/stamp
	KERAS_BACKEND=jax $(DEMO)/bin/intact demo --output demo-out $(ARGS)

test: $(TEST)/stamp
	KERAS_BACKEND=torch $(TEST)/bin/python -m pytest -n 2 $(SLOWEST) $(COVERAGE) tests $(ARGS)

coverage: COVERAGE = --cov --cov-report=term
coverage: test

test-jax: $(TEST)/stamp
	KERAS_BACKEND=jax $(TEST)/bin/python -m pytest -n 2 $(SLOWEST) $(COMPILED) $(ARGS)

test-tensorflow: $(TEST)/stamp
	KERAS_BACKEND=tensorflow $(TEST)/bin/python -m pytest -n 2 $(SLOWEST) $(COMPILED) $(ARGS)

test-oldest: $(TEST)/stamp
	$(TEST)/bin/python -m pip install --quiet --upgrade --target .keras-oldest --no-deps $(OLDEST)
	PYTHONPATH=.keras-oldest KERAS_BACKEND=torch $(TEST)/bin/python -m pytest -n 2 --cases 1 \
		tests/test_ops.py tests/test_training.py tests/test_canonicalize.py $(ARGS)

lint: $(TEST)/stamp
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy

# The notice of Material about another generator is no warning of ours. With --quiet, warnings would
# not be counted, and --strict would let them pass.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS)/stamp
	KERAS_BACKEND=torch OMP_NUM_THREADS=1 $(DOCS)/bin/mkdocs build --strict $(ARGS)

zoo: $(TEST)/stamp
	KERAS_BACKEND=torch $(TEST)/bin/python benchmarks/zoo.py $(ARGS)

peers: $(TEST)/stamp $(PEERS)/stamp
	QUANTIZER_PYTHON=$(PEERS)/quantizer/bin/python TFMOT_PYTHON=$(PEERS)/tfmot/bin/python \
		$(TEST)/bin/python benchmarks/peers.py $(ARGS)

clean:
	rm -rf $(DEMO) $(TEST) $(DOCS) $(PEERS) build/peers demo-out .keras-oldest site

$(DEMO)/stamp: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet -e '.[jax,demo]'
	touch $@

$(DOCS)/stamp: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -e '.[docs]' $(TORCH)
	touch $@

$(PEERS)/stamp:
	$(PYTHON) -m venv $(PEERS)/quantizer
	$(PEERS)/quantizer/bin/python -m pip install --quiet $(AI_EDGE_QUANTIZER)
	$(PYTHON) -m venv $(PEERS)/tfmot
	$(PEERS)/tfmot/bin/python -m pip install --quiet $(TFMOT)
	touch $@

$(TEST)/stamp: pyproject.toml
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python -m pip install --quiet -e '.[dev,jax,tensorflow]' $(TORCH) regex tokenizers
	$(TEST)/bin/python -m pip install --quiet --no-deps $(HUB)
	touch $@
