# `make demo` and `make test` are all that a fresh machine needs; each makes the environment if there is none.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
HPSV2 := .venv-hpsv2
RUN ?= demo
SEED ?= 0
TEACHER ?= shapes

# Idle threads sleep instead of spinning, and freed memory is kept instead of returned: both matter on few cores.
export OMP_WAIT_POLICY := PASSIVE
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 4000000000
export HF_HUB_OFFLINE := 1
export HYDRA_FULL_ERROR := 0

DEMO := runs/$(RUN)
MADE = checkpoint=$(DEMO)/four_steps/student "also=[$(DEMO)/two_steps/student,$(DEMO)/one_step/student]"

CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo yes)
# Without a GPU, two processes of half the threads use the cores better than one process of all.
ifeq ($(GPU),yes)
TRAIN := $(PY) launch/train.py
else
PROCESSES := $(shell [ $(CORES) -gt 1 ] && echo 2 || echo 1)
THREADS := $(shell echo $$(($(CORES) / $(PROCESSES))))
TRAIN := OMP_NUM_THREADS=$(THREADS) $(VENV)/bin/torchrun --standalone --nproc-per-node $(PROCESSES) launch/train.py
endif
# Networks compute in bfloat16 where the processor multiplies it itself (make DTYPE=float32 for the other).
DTYPE ?= $(if $(GPU),bfloat16,$(shell grep -qsw avx512_bf16 /proc/cpuinfo && echo bfloat16 || echo float32))

.PHONY: demo demo-full students few-step ablation reward-curve bench-reward vip vip-ablation toy test test-hpsv2 test-vip smoke lint types check teacher-metrics wheel

$(READY): setup.cfg setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: students  ## the main job: train students of 4, 2 and 1 steps, sample, evaluate, report
	$(PY) launch/sample.py checkpoint=$(DEMO)/four_steps/student steps=4 out=$(DEMO)/samples \
	  prompt="a small red circle moving left on a black background"
	$(PY) launch/evaluate.py $(MADE) out=$(DEMO)

demo-full: students  ## the same, evaluated on 1,024 pairs
	$(PY) launch/evaluate.py $(MADE) out=$(DEMO) clips=1024

students: $(READY)
	for made in four_steps two_steps one_step; do $(TRAIN) experiment=$$made runs=$(DEMO) seed=$(SEED) \
	  parallel.dtype=$(DTYPE) parallel.teacher_dtype=$(DTYPE) || exit; done

teacher-metrics: $(READY)  ## an embedded teacher's full figures, shipped in its folder; TEACHER=shapes_deep for the deeper one
	$(PY) launch/evaluate.py teacher=$(TEACHER) clips=1024 teacher_clips=1024 out=runs/$(TEACHER) report=false
	cp runs/$(TEACHER)/teacher_metrics.json dollar/assets/$(TEACHER)/metrics.json

ablation: $(READY)  ## every row on the shapes world, and docs/ablation.md; goes on where it was stopped; seeds=3
	$(PY) launch/ablation.py $(if $(seeds),seeds=$(seeds))

few-step: $(READY)  ## students of 4, 2, 1, 8 and 16 steps against the teacher, into docs/few_steps.md; goes on where it was stopped
	$(PY) launch/few_step.py dtype=$(DTYPE) teacher_dtype=$(DTYPE) $(if $(seeds),seeds=$(seeds))

reward-curve: $(READY)  ## how many scored clips each form of latent reward needs, into docs/reward_curve.md; goes on where it was stopped
	$(PY) launch/reward_curve.py

bench-reward: $(READY)  ## what rewards' gradients cost at the sizes of the paper's tables, into docs/benchmarks.md
	$(PY) launch/bench_reward.py

vip: $(READY)  ## the deeper teacher with three of its eight blocks fewer, trained on clips of the whole one, into runs/vip
	$(PY) launch/vip.py experiment=vip_shapes seed=$(SEED) processes=$(if $(GPU),1,$(PROCESSES)) \
	  parallel.dtype=$(DTYPE) parallel.teacher_dtype=$(DTYPE)

vip-ablation: $(READY)  ## what each part of V.I.P. does, into docs/vip.md; goes on where it was stopped
	$(PY) launch/vip_ablation.py dtype=$(DTYPE) teacher_dtype=$(DTYPE) $(if $(seeds),seeds=$(seeds))

toy: $(READY)  ## what SFT, DPO and both do to a small diffusion model in the plane, into docs/toy.md; goes on where it was stopped
	OMP_NUM_THREADS=1 $(PY) launch/toy.py

# Tests take one thread each. What they free is given back, as there are several of them.
test: $(READY)
	env -u MALLOC_MMAP_MAX_ -u MALLOC_TRIM_THRESHOLD_ $(PY) -m pytest -n $(shell [ $(CORES) -gt 4 ] && echo 4 || echo $(CORES)) --dist worksteal

$(HPSV2)/.ready: $(READY)
	$(PYTHON) -m venv $(HPSV2)
	$(PY) -c "import site; print(site.getsitepackages()[0])" > \
	  $$($(HPSV2)/bin/python -c "import site; print(site.getsitepackages()[0])")/dollar.pth
	$(HPSV2)/bin/pip install -q --no-deps hpsv2==1.2.0 clint==0.5.1 args==0.1.0 open_clip_torch==3.3.0 torchvision==0.28.0
	touch $@

test-hpsv2: $(HPSV2)/.ready  ## HPSv2 and PickScore against their publishers' programs, on the same random weights
	PYTHONPATH=. $(HPSV2)/bin/python tests/hpsv2_parity.py

test-vip: $(READY)  ## launch/vip.py killed inside each of its steps: the same weights (three minutes on two cores)
	$(PY) tests/killed_stages.py

smoke: $(READY)  ## every family's tiny folder from clips to a pipeline: preprocess, train, resume, export, sample
	$(PY) tests/smoke.py

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)
	$(VENV)/bin/mypy

check: lint types test

wheel: $(READY)  ## dist/*.whl, which pip installs anywhere; its `dollar train ...` takes what launch/train.py takes
	rm -rf build
	$(PY) -m pip wheel -q . --no-deps --no-build-isolation -w dist
