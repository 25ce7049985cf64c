"""What devices print, in the layouts of their tools' documentation; no phone was at hand to record it from."""

ANDROID_STATE = """# load
1.42 1.20 1.03 2/1876 21034
# memory
MemTotal:       11575300 kB
MemFree:          403292 kB
MemAvailable:    5242880 kB
# governor
walt
walt
walt
# kilohertz
1804800
2496000
<unknown>
# thermal
41000 cpu-0-0-usr
-40000 modem-off
254000 broken
38500 skin-therm
# throttled
# power
# cpu
Hardware	: Qualcomm Technologies, Inc SM8550
# system
Linux aarch64
# thermal status
IsStatusOverride: false
Thermal Status: 1
Cached temperatures:
	Temperature{mValue=29.9, mType=2, mName=battery, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
	Temperature{mValue=31.5, mType=2, mName=battery, mStatus=0}
	Temperature{mValue=36.25, mType=3, mName=skin, mStatus=1}
Current cooling devices from HAL:
	CoolingDevice{mValue=0, mType=2, mName=cpu-cdev}
# battery
Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  level: 87
  scale: 100
# model
Pixel 8
SM8550
14
"""

PI_STATE = """# load
0.05 0.03 0.00 1/182 1234
# memory
MemTotal:        8000000 kB
MemAvailable:    7168000 kB
# governor
ondemand
ondemand
# kilohertz
2400000
1500000
# thermal
48300 cpu-thermal
# throttled
throttled=0x50000
# power
# cpu
Raspberry Pi 5 Model B Rev 1.0\0
# system
Linux aarch64
"""

JETSON_POWER = "# power\nNV Power Mode: MAXN_SUPER\n2\n# system\nLinux aarch64\n"

# LiteRT's tools/benchmark, before and after it told quantiles
BENCHMARK_MODEL = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [30]
INFO: Graph: [encoder.tflite]
INFO: Loaded model encoder.tflite
INFO: The input model file size (MB): 22.1
INFO: Initialized session in 41.25ms.
INFO: Running benchmark for at least 3 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=4 first=152310 curr=140021 min=139820 max=152310 avg=143200 std=5200

INFO: Running benchmark for at least 30 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=30 first=140112 curr=139911 min=139003 max=149120 avg=140500 std=1900

INFO: Inference timings in us: Init: 41250, First inference: 152310, Warmup (avg): 143200, Inference (avg): 140500
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE.
INFO: Overall peak memory footprint (MB) via periodic monitoring: 187.4
"""
BENCHMARK_MODEL_NEWER = BENCHMARK_MODEL.replace(
    "avg=140500 std=1900", "avg=140500 std=1900 p5=139100 median=140200 p95=145000"
)
BENCHMARK_MODEL_FAILED = """INFO: STARTING!
ERROR: Failed to load model model.tflite
ERROR: Benchmarking failed.
"""

# NVIDIA's trtexec of TensorRT 10, in the layout of its documentation and samples
TRTEXEC = """&&&& RUNNING TensorRT.trtexec [TensorRT v101301] [b9] # trtexec --onnx=encoder.onnx --stronglyTyped
[11/20/2026-09:12:01] [I] === Model Options ===
[11/20/2026-09:12:20] [I] Engine built in 18.7312 sec.
[11/20/2026-09:12:20] [I] Created execution context with device memory size: 41.5 MiB
[11/20/2026-09:12:20] [I] Using random values for input image
[11/20/2026-09:12:23] [I] Average on 10 runs - GPU latency: 4.11 ms - Host latency: 4.52 ms (enqueue 0.41 ms)
[11/20/2026-09:12:23] [I] === Trace details ===
[11/20/2026-09:12:23] [I] Timing trace has 726 queries over 3.00711 s
[11/20/2026-09:12:23] [I] === Performance summary ===
[11/20/2026-09:12:23] [I] Throughput: 241.428 qps
[11/20/2026-09:12:23] [I] Latency: min = 4.41943 ms, max = 5.10156 ms, mean = 4.51234 ms, median = 4.50146 ms, \
percentile(90%) = 4.58984 ms, percentile(95%) = 4.63 ms, percentile(99%) = 4.81 ms
[11/20/2026-09:12:23] [I] Enqueue Time: min = 0.3811 ms, max = 0.9 ms, mean = 0.41 ms, median = 0.40 ms, \
percentile(90%) = 0.43 ms, percentile(95%) = 0.45 ms, percentile(99%) = 0.61 ms
[11/20/2026-09:12:23] [I] H2D Latency: min = 0.36 ms, max = 0.41 ms, mean = 0.37 ms, median = 0.37 ms, \
percentile(90%) = 0.38 ms, percentile(95%) = 0.38 ms, percentile(99%) = 0.40 ms
[11/20/2026-09:12:23] [I] GPU Compute Time: min = 4.02637 ms, max = 4.69 ms, mean = 4.11321 ms, median = 4.10254 ms, \
percentile(90%) = 4.18945 ms, percentile(95%) = 4.22852 ms, percentile(99%) = 4.41211 ms
[11/20/2026-09:12:23] [I] D2H Latency: min = 0.02 ms, max = 0.05 ms, mean = 0.03 ms, median = 0.03 ms, \
percentile(90%) = 0.03 ms, percentile(95%) = 0.03 ms, percentile(99%) = 0.04 ms
[11/20/2026-09:12:23] [I] Total Host Walltime: 3.00711 s
[11/20/2026-09:12:23] [I] Total GPU Compute Time: 2.98619 s
&&&& PASSED TensorRT.trtexec [TensorRT v101301] [b9] # trtexec --onnx=encoder.onnx --stronglyTyped
"""
TRTEXEC_OLDER = TRTEXEC.replace("percentile(90%) = 4.18945 ms, percentile(95%) = 4.22852 ms, ", "").replace(
    "Engine built in 18.7312 sec.", "Engine built."
)
TRTEXEC_FAILED = """&&&& RUNNING TensorRT.trtexec [TensorRT v101301] [b9] # trtexec --onnx=encoder.onnx
[11/20/2026-09:12:01] [E] Error[1]: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)
[11/20/2026-09:12:01] [E] Engine could not be created from network
&&&& FAILED TensorRT.trtexec [TensorRT v101301] [b9] # trtexec --onnx=encoder.onnx
"""
