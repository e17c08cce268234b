# Serves the page (docs/app.md) with the shipped weights, on the CPU.
FROM python:3.12-slim

# PyTorch's index of CPU wheels makes the image much smaller.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /dcp_clip
COPY . .
RUN pip install --no-cache-dir --editable ".[app,demo]" \
    && python tools/install_detectron2.py \
    && useradd --create-home user
USER user
EXPOSE 7860
CMD ["python", "demo/app.py", "--host", "0.0.0.0", "--port", "7860"]
