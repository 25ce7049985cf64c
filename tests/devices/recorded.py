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
