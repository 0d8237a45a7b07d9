# The server in a container. CPU by default; for a GPU: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker build -t minimind-o . && docker run -p 127.0.0.1:7860:7860 minimind-o
# It listens to everybody who can reach the container: publish it to more than 127.0.0.1 only with --auth or --api-key as an argument.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 GRADIO_ANALYTICS_ENABLED=False
WORKDIR /app
COPY requirements.txt ./
RUN torch="$(grep '^torch==' requirements.txt)" \
    && pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple "$torch" \
    && pip install -r requirements.txt
COPY . .
RUN useradd --create-home app && mkdir -p out/voices && chown -R app out
USER app
EXPOSE 7860
VOLUME /app/out/voices
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request, urllib.error as e\ntry: ok = urllib.request.urlopen('http://127.0.0.1:7860/healthz').status == 200\nexcept e.HTTPError as x: ok = x.code == 401\nraise SystemExit(not ok)"]
ENTRYPOINT ["python", "-m", "scripts.web_demo_omni", "--host", "0.0.0.0"]
