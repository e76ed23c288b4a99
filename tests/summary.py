#!/usr/bin/env python3
"""Adds up what a run of tests/run.sh left behind and prints one closing line.

GoogleTest programs count by case (their JSON), every other ctest entry counts as one (JUnit). Each skip is printed with its
reason. Exit code 1 if anything failed or nothing ran.
"""
import glob
import json
import os
import re
import sys
import xml.etree.ElementTree as xml


def google_cases(path):
    """Yields (name, state, message) of one GoogleTest JSON file."""
    with open(path, encoding="utf-8") as f:
        report = json.load(f)
    for suite in report["testsuites"]:
        for case in suite["testsuite"]:
            name = f"{suite['name']}.{case['name']}"
            if case.get("failures"):
                yield name, "failed", case["failures"][0]["failure"]
            elif case.get("result") == "SKIPPED" or case.get("skipped"):
                skipped = case.get("skipped") or [{}]
                yield name, "skipped", skipped[0].get("message", "")
            elif case.get("status") == "RUN":
                yield name, "passed", ""


def skip_reason(output):
    """What GTEST_SKIP said; Debian's GoogleTest leaves it out of the JSON."""
    said = re.search(r": Skipped\n(.*)", output)
    return said.group(1) if said else ""


def main(results):
    count = {"passed": 0, "failed": 0, "skipped": 0}
    for junit in sorted(glob.glob(os.path.join(results, "*.xml"))):
        tree = os.path.basename(junit)[:-4]
        reports = {os.path.basename(p)[:-5]: p for p in glob.glob(os.path.join(results, tree, "*.json"))}
        for entry in xml.parse(junit).getroot().iter("testcase"):
            name, status = entry.get("name"), entry.get("status")
            cases = list(google_cases(reports[name])) if name in reports else []
            broken = entry.find("failure") is not None or status == "fail"
            if not cases or (broken and all(state != "failed" for _, state, _ in cases)):
                skipped = entry.find("skipped") is not None or status == "notrun"
                cases.append((name, "failed" if broken else "skipped" if skipped else "passed", entry.findtext("system-out") or ""))
            for case, state, message in cases:
                count[state] += 1
                if state == "skipped" and not message:
                    message = skip_reason(entry.findtext("system-out") or "")
                if state != "passed":
                    print(f"{state} {tree}/{name}: {case}: {' '.join(message.split())[-300:]}")
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] or not count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
