# make serve: set up what the service needs, run it, print its address.
# make test:  set up what the checks need, run them all.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUN ?= ../training

.PHONY: serve test weights-ldm weights-sr3 clean

serve: .venv/serve
	@$(BIN)/python -m service

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || \
		{ rm -rf .venv; echo "python3 -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	@touch $@

.venv/serve: .venv/python pyproject.toml constraints.txt
	@echo "Installing what the service needs into .venv (a few minutes the first time)"
	@$(INSTALL) --editable .
	@touch $@

.venv/test: .venv/python pyproject.toml constraints.txt
	@echo "Installing what the checks need into .venv (a few minutes the first time)"
	@$(INSTALL) --editable '.[train,eval,dev]'
	@touch $@ .venv/serve

# The bundled weights again, from nothing, with checkpoints and logs under $(RUN). Hours on a CPU; again goes on.
weights-ldm: .venv/test
	$(BIN)/python -m ldm.corpus --pack $(RUN)/drawings.safetensors
	$(BIN)/python -m ldm.train autoencoder --pack $(RUN)/drawings.safetensors --out $(RUN)/autoencoder
	$(BIN)/python -m ldm.train diffusion --pack $(RUN)/drawings.safetensors \
		--autoencoder $(RUN)/autoencoder/vae --out $(RUN)/diffusion-12
	$(BIN)/python -m ldm.train autoencoder --pack $(RUN)/drawings.safetensors --init $(RUN)/autoencoder/vae \
		--latent-channels 48 --kl-weight 1e-4 --out $(RUN)/autoencoder-48
	$(BIN)/python -m ldm.train autoencoder --pack $(RUN)/drawings.safetensors --init $(RUN)/autoencoder-48/vae \
		--decoder-only --latent-noise 0.3 --out $(RUN)/decoder
	$(BIN)/python -m ldm.train diffusion --pack $(RUN)/drawings.safetensors --init $(RUN)/diffusion-12/pipeline \
		--autoencoder $(RUN)/decoder/vae --timestep-shift 2 --loop.steps 20000 --out $(RUN)/diffusion
	$(BIN)/python -m ldm.preview --pack $(RUN)/drawings.safetensors --model $(RUN)/diffusion/pipeline
	@echo "Made $(RUN)/diffusion/pipeline"

weights-sr3: .venv/test
	$(BIN)/python -m ldm.corpus --render $(RUN)/drawings --size 256 --everyday-only
	$(BIN)/python -m sr3.corpus --pack $(RUN)/crops.safetensors --folders $(RUN)/drawings \
		--held-out $(RUN)/held_out --size 256 --crops 19500 --skip-bad
	$(BIN)/python -m sr3.train --data $(RUN)/crops.safetensors --out $(RUN)/sr3-encoder --phase encoder
	$(BIN)/python -m sr3.train --data $(RUN)/crops.safetensors --out $(RUN)/sr3-fidelity --init $(RUN)/sr3-encoder/pipeline \
		--phase encoder --mean-loss psnr-ssim --crop-size 256 --loop.batch-size 3 --loop.learning-rate 3e-4 \
		--mix.bicubic 0.2 --mix.bsr-light 0.2 --mix.bsr 0.5 --mix.bsr-plus 0.1
	$(BIN)/python -m sr3.train --data $(RUN)/crops.safetensors --out $(RUN)/sr3 --init $(RUN)/sr3-fidelity/pipeline \
		--phase few-steps
	@echo "Made $(RUN)/sr3/pipeline"

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
