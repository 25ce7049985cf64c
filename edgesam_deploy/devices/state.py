"""In what state a machine is: load, memory, clock, governor, temperature. Asked with a shell, read as text."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

# each section prints what there is; what there is not leaves it empty
ASK = """
echo '# load'; cat /proc/loadavg
echo '# memory'; cat /proc/meminfo
echo '# governor'; cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor
echo '# kilohertz'; cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq
echo '# thermal'; for z in /sys/class/thermal/thermal_zone*; do echo "$(cat $z/temp) $(cat $z/type)"; done
echo '# throttled'; command -v vcgencmd > /dev/null && vcgencmd get_throttled
echo '# power'; command -v nvpmodel > /dev/null && nvpmodel -q
echo '# cpu'; grep -m1 -E 'model name|Hardware' /proc/cpuinfo || cat /proc/device-tree/model
echo '# system'; uname -sm
"""
ASK_ANDROID = """
echo '# thermal status'; dumpsys thermalservice
echo '# battery'; dumpsys battery
echo '# model'; getprop ro.product.model; getprop ro.soc.model; getprop ro.build.version.release
"""


def parse_state(text: str) -> dict[str, Any]:
    """What the answers to ``ASK`` (and ``ASK_ANDROID``) say; a key is missing where the machine does not tell.

    load: 1-minute average; memory_available_mb; governors: name -> CPUs; mhz: of each CPU; celsius: zone -> degrees;
    throttled: Raspberry Pi's word, power: Jetson's mode; thermal_status: Android's 0 (none) to 6 (shutdown), battery in
    percent; cpu, system, model.
    """
    sections = _sections(text)
    found = {
        "load": _number(r"^(\d+\.\d+)", sections.get("load", "")),
        "memory_available_mb": _megabytes(sections.get("memory", "")),
        "governors": dict(Counter(sections.get("governor", "").split())),
        "mhz": [int(word) // 1000 for word in sections.get("kilohertz", "").split() if word.isdigit()],
        "celsius": _temperatures(sections.get("thermal", "")) | _android(sections.get("thermal status", "")),
        "throttled": _word(r"throttled=(\S+)", sections.get("throttled", "")),
        "power": _word(r"Power Mode:\s*(\S+)", sections.get("power", "")),
        "thermal_status": _number(r"Thermal Status:\s*(\d+)", sections.get("thermal status", "")),
        "battery_percent": _number(r"^\s*level:\s*(\d+)", sections.get("battery", "")),
        "cpu": sections.get("cpu", "").partition(":")[2].strip() or sections.get("cpu", "").strip("\0 \n"),
        "system": sections.get("system", "").strip(),
        "model": " ".join(sections.get("model", "").split()),
    }
    return {key: value for key, value in found.items() if value not in (None, "", [], {})}


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^# ([a-z ]+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _number(pattern: str, text: str) -> float | None:
    found = re.search(pattern, text, re.MULTILINE)
    return float(found[1]) if found else None


def _word(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _megabytes(meminfo: str) -> float | None:
    kilobytes = _number(r"^MemAvailable:\s*(\d+)", meminfo)
    return None if kilobytes is None else round(kilobytes / 1024)


def _temperatures(zones: str) -> dict[str, float]:
    """Lines of millidegrees and a zone's name; zones that are switched off tell nothing or nonsense."""
    pairs = (line.split(maxsplit=1) for line in zones.splitlines())
    values = {pair[1]: int(pair[0]) / 1000 for pair in pairs if len(pair) == 2 and re.fullmatch(r"-?\d+", pair[0])}
    return {zone: value for zone, value in values.items() if 0 < value < 150}


def _android(service: str) -> dict[str, float]:
    """``Temperature{mValue=38.4, mType=3, mName=skin, mStatus=0}``, as the HAL gives them now."""
    current = service.partition("Current temperatures from HAL:")[2] or service
    pairs = re.findall(r"Temperature\{mValue=(-?[\d.]+),[^}]*?mName=([^,}]+)", current)
    return {name: float(value) for value, name in pairs if 0 < float(value) < 150}
