#!/usr/bin/env python3
"""In adb's place: runs shell scripts here, its folders in a folder of ours, and records every call.

Environment: ADB_ROOT the folder that stands for the device, ADB_SERIALS the serials that are there, with commas.
Like adb's, its shell has the commands of Android, here from ADB_ROOT/bin.
"""

import json
import os
import shutil
import sys

root = os.environ["ADB_ROOT"]
words = sys.argv[1:]
with open(f"{root}/calls.jsonl", "a") as log:
    log.write(json.dumps(words) + "\n")
serials = os.environ["ADB_SERIALS"].split(",") if os.environ["ADB_SERIALS"] else []
if words[0] == "-s":
    wanted, words = words[1], words[2:]
    if wanted not in serials:
        sys.exit(f"adb: device '{wanted}' not found")
elif len(serials) != 1:
    sys.exit("adb: no devices/emulators found" if not serials else "adb: more than one device/emulator")


def inside(path):
    return path.replace("/data/local/tmp", f"{root}/data/local/tmp")


if words[0] == "shell":
    environment = {**os.environ, "PATH": f"{root}/bin:{os.environ['PATH']}"}
    os.execvpe("sh", ["sh", "-c", inside(" ".join(words[1:]))], environment)
elif words[0] == "push":
    target = inside(words[2])
    os.makedirs(os.path.dirname(target), exist_ok=True)  # as adb does
    shutil.copyfile(words[1], target)
elif words[0] == "pull":
    if not os.path.exists(inside(words[1])):
        sys.exit(f"adb: error: failed to stat remote object '{words[1]}': No such file or directory")
    shutil.copyfile(inside(words[1]), words[2])
else:
    sys.exit(f"adb: unknown command {words[0]}")
