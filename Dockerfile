# Builds and runs bundles for every target that needs no vendor's account: docker build -t edgesam-deploy .
#   docker run --rm -v "$PWD:/work" edgesam-deploy build edge_sam --out out/edge_sam
# No port is opened; the demo is asked for by name: docker run -p 127.0.0.1:7860:7860 ... demo BUNDLE --host 0.0.0.0
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY release release
COPY edgesam_deploy edgesam_deploy
RUN python -m venv /opt/edgesam-deploy \
 && /opt/edgesam-deploy/bin/pip install --no-cache-dir --constraint constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu '.[torch,openvino,coreml,tflite,qnn]'

FROM python:3.11-slim-bookworm
RUN useradd --create-home user
COPY --from=build /opt/edgesam-deploy /opt/edgesam-deploy
ENV PATH=/opt/edgesam-deploy/bin:$PATH HF_HUB_DISABLE_TELEMETRY=1
USER user
WORKDIR /work
ENTRYPOINT ["edgesam-deploy"]
CMD ["--help"]
