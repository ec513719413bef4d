# Spark, Python, lakerank and its packages in one image, for Kubernetes (conf/spark-kubernetes.conf) and for any machine:
#   docker build -t registry.example.org/lakerank:0.1.0 .
# Torch's own Linux packages bring CUDA's libraries; the host needs a driver and NVIDIA's container toolkit alone.
ARG SPARK=4.3.0
ARG PYTHON=3.11

# Only for the script by which Kubernetes starts a driver or an executor.
FROM apache/spark:${SPARK} AS spark

FROM python:${PYTHON}-slim-bookworm
# gcc: Triton compiles what launches its kernels.
RUN apt-get update \
    && apt-get install -y --no-install-recommends openjdk-17-jre-headless tini procps libnss-wrapper gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/lakerank
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY lib lib
COPY conf conf
RUN pip install --no-cache-dir -c constraints.txt '.[spark,s3,report,train]'

# spark-submit and the executors' classes are those of the pyspark package.
RUN ln -s "$(python -c 'import pyspark, pathlib; print(pathlib.Path(pyspark.__file__).parent)')" /opt/spark \
    && ln -s "$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")" /opt/java
COPY --from=spark /opt/entrypoint.sh /opt/entrypoint.sh
COPY jobs jobs

ENV SPARK_HOME=/opt/spark JAVA_HOME=/opt/java PYSPARK_PYTHON=python3 PYSPARK_DRIVER_PYTHON=python3
RUN useradd --uid 185 --home-dir /home/spark --create-home spark \
    && install -d -o spark /opt/spark-work
WORKDIR /opt/spark-work
USER 185
ENTRYPOINT ["/opt/entrypoint.sh"]
