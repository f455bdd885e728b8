"""What users of other meters complain of: the complaint, the guard against it here, the tests that fail without it."""

from collections.abc import Mapping
from typing import NamedTuple

KEPLER = "sustainable-computing-io/kepler"
DCGM = "NVIDIA/dcgm-exporter"
AMD_EXPORTER = "ROCm/device-metrics-exporter"
SMI_EXPORTER = "utkuozdemir/nvidia_gpu_exporter"
TELEGRAF = "influxdata/telegraf"
SCAPHANDRE = "hubblo-org/scaphandre"
ALUMET = "alumet-dev/alumet"
ZEUS = "ml-energy/zeus"
CODECARBON = "mlco2/codecarbon"
NODE_EXPORTER = "prometheus/node_exporter"
CEEMS = "ceems-dev/ceems"
AITRA = "aitra-ai/aitra-meter"


def issues(repository: str, *numbers: int) -> tuple[str, ...]:
    """Issues of one repository, as `owner/name#number`."""
    return tuple(f"{repository}#{number}" for number in numbers)


COMPLAINTS: Mapping[str, tuple[str, ...]] = {
    "impossible watts": issues(KEPLER, 1344, 1279, 1049, 897),
    "idle power is not told apart": issues(KEPLER, 2470, 1194),
    "zeros and no error": (*issues(KEPLER, 1346, 860), *issues("sustainable-computing-io/kepler-helm-chart", 46)),
    "no power in a virtual machine": issues(KEPLER, 1152, 2076, 973),
    "a misspelt key is dropped": issues(KEPLER, 2536),
    "each sharer of a GPU is shown all of its power": issues(DCGM, 582, 307, 151, 201),
    "memory grows": (
        *issues(DCGM, 536, 292),
        *issues("NVIDIA/gpu-operator", 340),
        *issues(SMI_EXPORTER, 373),
    ),
    "names and labels change, devices are missing": issues(DCGM, 340, 655, 507),
    "power ends after two days": issues(AMD_EXPORTER, 315),
    "partitions are missing or counted twice": issues(AMD_EXPORTER, 495, 115),
    "zeros of consumer parts, and no CPU beside the GPU": issues(AMD_EXPORTER, 353, 281, 259, 589),
    "a command for each scrape, which hangs": issues(SMI_EXPORTER, 89, 405, 142),
    "slow reads, and formats that change": (
        *issues(TELEGRAF, 8534, 16569, 15279),
        *issues("netdata/netdata", 10362),
    ),
    "high CPU, crashes without sensors, sums that are none": issues(SCAPHANDRE, 166, 133, 163, 132, 24),
    "series that never arrive": issues(ALUMET, 333, 186, 398),
    "a missing library stops the start": issues(ALUMET, 254),
    "MIG crashes, processes are left, node and dashboards are missing": issues(ZEUS, 109, 261, 266, 112, 78),
    "a guess in place of counters that may not be read": issues(CODECARBON, 244, 304, 232, 915, 500, 950),
    "a log full of one refusal, and a zone that crashes": issues(NODE_EXPORTER, 2090, 1892, 2269, 1808),
    "layouts of cgroups, Cray, MIG and virtual GPUs": issues(CEEMS, 284, 239, 193),
    "one model pays for the whole node": issues(AITRA, 89, 82, 43, 49, 51),
    "no energy for each request": (
        *issues("vllm-project/vllm", 10748, 36440),
        *issues("1CatAI/1Cat-vLLM", 535),
        *issues("ai-dynamo/aiperf", 803, 1009),
    ),
    "figures without their method": (
        *issues("mlcommons/inference", 2558),
        *issues("mlcommons/mlperf_client", 19),
        *issues("SemiAnalysisAI/InferenceX-app", 393),
    ),
}
"""What users complain of, in our words, and where they said it."""


class Guard(NamedTuple):
    """The code that protects: `code` stands once in `file`; with `instead` in its place the guard is gone."""

    file: str
    code: str
    instead: str


class Row(NamedTuple):
    """One complaint, or a part of one.

    issues: all of a group where it is not known which of them says this. outside: why it is none of jouled's, where
    there is no guard.
    """

    complaint: str
    issues: tuple[str, ...]
    guard: Guard | None = None
    tests: tuple[str, ...] = ()
    outside: str = ""


_POWER = "collectors/jouled_collectors/power"
_CORE = "daemon/jouled/core"
_RUNTIME = "daemon/jouled/app/runtime"
_METRICS = "daemon/jouled/outputs/metrics"
_OF_POWER = "tests/collectors/power"
_OF_CORE = "tests/core"
_OF_RUNTIME = "tests/app/runtime"
_OF_METRICS = "tests/outputs/metrics"
_OF_AMD = f"{_OF_POWER}/test_amd.py"
_OF_NVML = f"{_OF_POWER}/test_nvml.py"
_OF_CASES = f"{_OF_CORE}/test_special_cases.py"
_MISSING = "tests/complaints/test_missing.py"

ROWS: tuple[Row, ...] = (
    Row(
        "The sensor's word for unknown, 4294967295000 µW, is taken for watts.",
        issues(KEPLER, 897),
        Guard(f"{_POWER}/sysfs_sensor.py", "if not SENTINELS.isdisjoint(values):", "if False:"),
        (f"{_OF_POWER}/test_hwmon.py::TestFaults::test_a_fault_is_told_beside_what_works",),
    ),
    Row(
        "A counter that jumps becomes impossible watts.",
        COMPLAINTS["impossible watts"],
        Guard(f"{_CORE}/ledger/counters.py", "if self._too_much(delta, t_ns - last_ns + JITTER_NS):", "if False:"),
        (
            f"{_OF_CORE}/test_ledger.py::test_a_sentinel_is_rejected_and_the_next_reading_goes_on",
            f"{_OF_CORE}/test_ledger.py::test_a_jump_that_stays_is_a_new_counter",
        ),
    ),
    Row(
        "A counter that was reset is taken for one that wrapped.",
        COMPLAINTS["impossible watts"],
        Guard(
            f"{_CORE}/ledger/counters.py",
            " or self._too_much(delta + self._wrap_uj, t_ns - last_ns):",
            ":",
        ),
        (f"{_OF_CORE}/test_ledger.py::test_a_decrease_is_a_wrap_only_with_a_range_and_a_plausible_power",),
    ),
    Row(
        "A power gauge says NaN, less than nothing or 65535 W.",
        COMPLAINTS["impossible watts"],
        Guard(f"{_CORE}/ledger/counters.py", "if not 0.0 <= watts <= self._plausible_watts:", "if False:"),
        (f"{_OF_CORE}/test_ledger.py::test_a_gauge_rejects_what_is_no_power",),
    ),
    Row(
        "A reading is thrown away and nobody is told.",
        COMPLAINTS["impossible watts"],
        Guard(
            f"{_CORE}/live.py",
            'self._counters.add("source_errors_total", (source, reason), count)',
            "del reason, count",
        ),
        (f"{_MISSING}::test_what_is_rejected_is_counted_by_its_reason",),
    ),
    Row(
        "Idle power is no series of its own any more.",
        COMPLAINTS["idle power is not told apart"],
        Guard(
            f"{_CORE}/attribution/group.py",
            "closed.bookings.append(self._book(name, Owner.IDLE, split.idle))",
            "closed.bookings.append(self._book(name, Owner.RESIDENT, split.idle))",
        ),
        (
            f"{_MISSING}::test_idle_is_a_series_of_its_own",
            f"{_OF_CORE}/test_cases.py::test_idle_policies_move_static_power_and_nothing_else",
        ),
    ),
    Row(
        "A meter that has died is shown with its last power, or with 0 W.",
        COMPLAINTS["zeros and no error"],
        Guard(f"{_CORE}/ledger/meter.py", "return None if self.silent(now_ns) else self._watts", "return self._watts"),
        (f"{_OF_CORE}/test_ledger.py::test_power_is_a_mean_over_a_second_and_absent_when_silent",),
    ),
    Row(
        "A source that fails says no reason.",
        COMPLAINTS["zeros and no error"],
        Guard(f"{_RUNTIME}/samplers.py", "        outbox.fail(error)\n", ""),
        (f"{_OF_RUNTIME}/test_samplers.py::test_error_is_reported_closed_and_opened_again",),
    ),
    Row(
        "A virtual machine has no sensor, and nobody says what to do.",
        COMPLAINTS["no power in a virtual machine"],
        Guard(f"{_POWER}/rapl_zones.py", "; a virtual machine has none: use [power.estimate]", ""),
        (f"{_MISSING}::test_a_virtual_machine_is_told_what_to_do",),
    ),
    Row(
        "A guest's estimate looks like a measurement.",
        COMPLAINTS["no power in a virtual machine"],
        Guard(
            f"{_POWER}/estimate.py",
            "quality=Quality.ESTIMATED,",
            "quality=Quality.MEASURED,",
        ),
        (f"{_OF_POWER}/test_estimate.py::TestDevice::test_one_device_marked_as_estimated",),
    ),
    Row(
        "A key that does not exist is dropped without a word.",
        issues(KEPLER, 2536),
        Guard(
            "daemon/jouled/app/config/convert.py",
            'raise Fault(f"{path}.{key}", f"unknown key `{key}`", nearest(key, known))',
            "continue",
        ),
        ("tests/app/config/test_load.py::test_a_wrong_file_is_told_by_key_reason_and_mend",),
    ),
    Row(
        "Engines that share a GPU are each shown all of its energy.",
        COMPLAINTS["each sharer of a GPU is shown all of its power"],
        Guard(
            f"{_CORE}/attribution/group.py",
            "shares = _shares(users, residency, expected, microjoules, device_base + device_uplift)",
            "shares = [(i, microjoules, 1.0) for i in users]",
        ),
        (f"{_OF_CASES}::test_engines_on_one_device_share_idle_by_residency_and_the_rest_by_work",),
    ),
    Row(
        "A page repeats one meter for each pod or MIG instance, and it is added up.",
        COMPLAINTS["each sharer of a GPU is shown all of its power"],
        Guard(f"{_POWER}/dcgm_page.py", "max(rows) if quantity is Quantity.ENERGY else fmean(rows)", "sum(rows)"),
        (
            f"{_OF_POWER}/test_dcgm.py::TestReadings::test_pods_that_share_a_gpu_repeat_its_meter",
            f"{_OF_POWER}/test_dcgm.py::TestReadings::test_mig_instances_repeat_the_meter_of_their_gpu",
        ),
    ),
    Row(
        "Pods are missing, or their labels are wrong.",
        COMPLAINTS["each sharer of a GPU is shown all of its power"],
        outside="jouled knows no pods: energy goes to engines, models and requests, whatever starts the engines.",
    ),
    Row(
        "Memory grows with the label values that come and go.",
        COMPLAINTS["memory grows"],
        Guard(f"{_CORE}/accounting/counters.py", "if len(self._known) < self._most:", "if True:"),
        (f"{_OF_CORE}/accounting/test_label_flood.py::test_sums_over_a_flood_of_tenants_are_right",),
    ),
    Row(
        "Memory grows with the time that the exporter runs.",
        COMPLAINTS["memory grows"],
        Guard(f"{_CORE}/ledger/curve.py", "if keep_from > 256:", "if False:"),
        (f"{_OF_CORE}/test_numerics.py::test_memory_is_bounded_whatever_the_uptime",),
    ),
    Row(
        "The page grows without a limit.",
        COMPLAINTS["memory grows"],
        Guard(f"{_METRICS}/exposition.py", "            del family.samples[room:]\n", ""),
        (f"{_OF_METRICS}/test_exposition.py::test_series_beyond_the_limit_are_left_out_counted_and_logged_once",),
    ),
    Row(
        "A label gets another name and no test objects.",
        COMPLAINTS["names and labels change, devices are missing"],
        Guard(
            f"{_METRICS}/catalogue.py",
            '"device_energy_joules_total",\n        "live",\n        ("device", "kind"),',
            '"device_energy_joules_total",\n        "live",\n        ("device", "type"),',
        ),
        (f"{_OF_METRICS}/test_reference.py::test_the_reference_is_current",),
    ),
    Row(
        "A device that cannot be read is missing without a word.",
        COMPLAINTS["names and labels change, devices are missing"],
        Guard(
            f"{_POWER}/nvml_source.py",
            "self.parts = {**self._missing, **{gpu.device.name: gpu.error for gpu in self._gpus}}",
            "self.parts = {gpu.device.name: gpu.error for gpu in self._gpus}",
        ),
        (f"{_OF_NVML}::TestParts::test_a_selected_gpu_without_a_meter_is_told",),
    ),
    Row(
        "MIG instances that are made later are not seen.",
        COMPLAINTS["names and labels change, devices are missing"],
        Guard(
            f"{_POWER}/nvml_source.py",
            "        if now_ns >= self._look_at_ns:\n            self._look_around(now_ns)\n",
            "",
        ),
        (f"{_OF_NVML}::TestMig::test_instances_made_later_appear_within_half_a_minute",),
    ),
    Row(
        "A field that vanishes under way ends the power of an AMD GPU.",
        issues(AMD_EXPORTER, 315),
        Guard(f"{_POWER}/amd_source.py", "if self._answers_by_another(gpu, meter):", "if False:"),
        (f"{_OF_AMD}::TestComingAndGoing::test_a_reading_that_vanishes_is_replaced_and_used_again_when_it_returns",),
    ),
    Row(
        "What was not supported once is never asked for again.",
        issues(AMD_EXPORTER, 315),
        Guard(
            f"{_POWER}/nvml_gpu.py",
            "if self.handle is None or before_ns >= self._choose_at_ns:",
            "if self.handle is None:",
        ),
        (f"{_OF_NVML}::TestVanishing::test_it_is_read_again_within_an_hour_after_it_returned",),
    ),
    Row(
        "Of a GPU's partitions only the first is shown.",
        issues(AMD_EXPORTER, 495),
        Guard(f"{_POWER}/amd_find.py", "for number in range(socket.partition_count)", "for number in range(1)"),
        (f"{_OF_AMD}::TestPartitions::test_one_meter_for_a_socket_and_a_share_for_each_partition",),
    ),
    Row(
        "Each partition is a GPU with the power of the whole.",
        issues(AMD_EXPORTER, 115),
        Guard(f"{_POWER}/amd_sockets.py", "if processor.partition == 0:", "if True:"),
        (f"{_OF_AMD}::TestPartitions::test_one_meter_for_a_socket_and_a_share_for_each_partition",),
    ),
    Row(
        "A part that tells no power is shown with 0 W.",
        COMPLAINTS["zeros of consumer parts, and no CPU beside the GPU"],
        Guard(f"{_POWER}/amd_values.py", "0 < told < UNKNOWN_WATTS", "0 <= told < UNKNOWN_WATTS"),
        (
            f"{_OF_POWER}/test_amd_values.py::TestPower::test_what_is_no_power",
            f"{_OF_AMD}::TestDevices::test_the_second_die_of_a_package_has_no_meter_and_shows_no_zeros",
        ),
    ),
    Row(
        "What a part does not know of itself becomes a label.",
        COMPLAINTS["zeros of consumer parts, and no CPU beside the GPU"],
        Guard(f"{_POWER}/amd_values.py", 'return "" if told == "N/A" else told', "return told"),
        (f"{_OF_POWER}/test_amd_values.py::TestText::test_descriptions",),
    ),
    Row(
        "The CPU is not to be seen beside the GPU.",
        (*COMPLAINTS["zeros of consumer parts, and no CPU beside the GPU"], *issues(SCAPHANDRE, 24)),
        Guard(
            "daemon/jouled/model/device.py",
            "frozenset({DeviceKind.GPU, DeviceKind.CPU_PACKAGE, DeviceKind.DRAM})",
            "frozenset({DeviceKind.GPU})",
        ),
        (f"{_MISSING}::test_gpu_processor_and_memory_stand_on_one_page",),
    ),
    Row(
        "A driver that hangs takes the exporter along.",
        COMPLAINTS["a command for each scrape, which hangs"],
        Guard(
            f"{_POWER}/nvml.py",
            'isolation: ClassVar[Literal["thread", "process"]] = "process"',
            'isolation: ClassVar[Literal["thread", "process"]] = "thread"',
        ),
        (f"{_OF_NVML}::TestSettings::test_the_collector_is_for_a_child_process",),
    ),
    Row(
        "A driver that hangs is waited for without an end.",
        COMPLAINTS["a command for each scrape, which hangs"],
        Guard(f"{_RUNTIME}/children.py", "asyncio.timeout(self._hung_seconds)", "asyncio.timeout(None)"),
        (f"{_OF_RUNTIME}/test_children.py::test_hung_child_is_killed",),
    ),
    Row(
        "A scrape waits for a meter.",
        COMPLAINTS["a command for each scrape, which hangs"],
        Guard(
            f"{_RUNTIME}/threads.py",
            'threading.Thread(target=work, name=f"sample-{self.name}", daemon=True).start()',
            "work()",
        ),
        (f"{_MISSING}::test_a_meter_that_hangs_delays_no_scrape",),
    ),
    Row(
        "Each scrape starts a command.",
        COMPLAINTS["a command for each scrape, which hangs"],
        Guard(f"{_POWER}/nvml_meters.py", "import pynvml\n", "import subprocess\n\nimport pynvml\n"),
        (f"{_MISSING}::test_reading_a_meter_starts_no_process",),
    ),
    Row(
        "Reading eight GPUs takes most of the interval.",
        COMPLAINTS["slow reads, and formats that change"],
        Guard(
            f"{_POWER}/nvml_source.py",
            "return max(DEFAULT_INTERVAL_SECONDS, 2 * cost_seconds)",
            "return DEFAULT_INTERVAL_SECONDS",
        ),
        (f"{_OF_NVML}::TestInterval::test_dear_reads_are_slow",),
    ),
    Row(
        "A new driver tells a field in another form, and power is lost.",
        COMPLAINTS["slow reads, and formats that change"],
        Guard(
            f"{_POWER}/nvml_meters.py",
            "if not 0 <= entry.valueType < len(_UNION_MEMBERS):",
            "if False:",
        ),
        (f"{_OF_NVML}::TestReadings::test_an_unknown_layout_passes_to_the_next_method",),
    ),
    Row(
        "One source that fails unexpectedly takes the others along.",
        COMPLAINTS["slow reads, and formats that change"],
        Guard(f"{_RUNTIME}/samplers.py", "return _crash(collector.name, error)", "raise"),
        (f"{_OF_RUNTIME}/test_samplers.py::test_bug_in_a_collector_is_an_error_like_others",),
    ),
    Row(
        "High CPU: reads that were missed are made up for.",
        issues(SCAPHANDRE, 166),
        Guard(
            f"{_RUNTIME}/samplers.py",
            "            due_ns = (ended_ns // interval_ns + 1) * interval_ns\n",
            "",
        ),
        (f"{_OF_RUNTIME}/test_samplers.py::test_slow_read_skips_ticks_and_counts_them_as_lateness",),
    ),
    Row(
        "High CPU: each scrape renders the page anew.",
        issues(SCAPHANDRE, 166),
        Guard(
            f"{_METRICS}/exposition.py",
            "            page = self.kept(snapshot, page_format)\n            if page is None:\n",
            "            if True:\n",
        ),
        (f"{_OF_METRICS}/test_exposition.py::test_the_page_is_rendered_once_for_each_snapshot_and_format",),
    ),
    Row(
        "A machine without sensors ends the process.",
        issues(SCAPHANDRE, 133),
        Guard(f"{_POWER}/rapl_zones.py", 'raise _absent(f"No {powercap}") from None', "raise"),
        (f"{_OF_POWER}/test_rapl.py::TestAbsent::test_no_powercap_at_all",),
    ),
    Row(
        "The parts do not add up to the host.",
        issues(SCAPHANDRE, 163, 132),
        Guard(f"{_CORE}/attribution/host.py", "parts.append(upto - given)", "parts.append(int(amount_uj * share))"),
        (f"{_MISSING}::test_the_parts_of_the_host_add_up",),
    ),
    Row(
        "A series is filled and never reaches Prometheus.",
        COMPLAINTS["series that never arrive"],
        Guard(
            f"{_METRICS}/exposition.py",
            "        self._complain_of_unknown([*values, *snapshot.histograms])\n",
            "",
        ),
        (f"{_OF_METRICS}/test_exposition.py::test_a_name_outside_the_catalogue_is_reported_once_and_the_page_stays",),
    ),
    Row(
        "Some kinds of series are sent to no receiver.",
        COMPLAINTS["series that never arrive"],
        Guard(
            f"{_METRICS}/points.py",
            "        if name in stored.values or name in stored.histograms\n",
            "        if name in stored.values\n",
        ),
        (f"{_MISSING}::test_what_is_sent_is_all_that_the_page_has",),
    ),
    Row(
        "What a receiver misses is given up after some tries.",
        COMPLAINTS["series that never arrive"],
        Guard(
            "daemon/jouled/outputs/sinks/runner.py",
            "            return self._failed(error)\n",
            "            self.place.advance(records[-1].number, 0)\n            return self._failed(error)\n",
        ),
        ("tests/outputs/sinks/test_runner.py::test_what_fails_is_kept_and_sent_again",),
    ),
    Row(
        "After an upgrade of the engine attribution is empty without a word.",
        COMPLAINTS["series that never arrive"],
        Guard(
            "collectors/jouled_collectors/engines/exposition.py",
            "if not found and self._any_name.search(page) is None:",
            "if False:",
        ),
        ("tests/collectors/engines/test_vllm.py::test_a_page_without_vllms_metrics_is_refused",),
    ),
    Row(
        "Requests that nobody tells of any more are missed by nobody.",
        COMPLAINTS["series that never arrive"],
        Guard(f"{_RUNTIME}/coverage.py", "if coverage < LOW and name not in self._low:", "if False:"),
        (f"{_OF_RUNTIME}/test_coverage.py::test_each_change_is_said_once",),
    ),
    Row(
        "Without NVML the program does not start.",
        issues(ALUMET, 254),
        Guard(
            f"{_POWER}/nvml_source.py",
            "        except pynvml.NVMLError as error:\n            raise source_error(error) from error\n",
            "        finally:\n            pass\n",
        ),
        (f"{_OF_NVML}::TestDriver::test_without_the_library_the_source_is_absent",),
    ),
    Row(
        "A plug-in that cannot be imported stops the start.",
        issues(ALUMET, 254),
        Guard(f"{_RUNTIME}/plugins.py", "except (Exception, SystemExit) as error:", "except _UnfitError as error:"),
        ("tests/app/test_plugins.py::test_a_broken_one_is_told_and_the_others_are_there",),
    ),
    Row(
        "A MIG instance that does not answer is a crash.",
        issues(ZEUS, 109),
        Guard(
            f"{_POWER}/nvml_mig.py",
            "    except (pynvml.NVMLError, UnicodeDecodeError):\n",
            "    except UnicodeDecodeError:\n",
        ),
        (f"{_OF_NVML}::TestMig::test_what_cannot_be_listed_is_no_partition",),
    ),
    Row(
        "A period of zero divides by zero.",
        issues(ZEUS, 261),
        Guard(
            f"{_RUNTIME}/samplers.py",
            "max(_SHORTEST_INTERVAL_NS, nanoseconds(source.interval_seconds))",
            "nanoseconds(source.interval_seconds)",
        ),
        (f"{_MISSING}::test_a_source_with_an_interval_of_zero_is_read",),
    ),
    Row(
        "Processes are left when the parent has died.",
        issues(ZEUS, 266),
        Guard(
            f"{_RUNTIME}/child.py",
            "    threading.Thread(target=_end_with_daemon, args=(pipe,), daemon=True).start()\n",
            "",
        ),
        (f"{_OF_RUNTIME}/test_children.py::test_killed_parent_leaves_no_orphan",),
    ),
    Row(
        "Processes are left when the daemon has ended.",
        issues(ZEUS, 266),
        Guard(f"{_RUNTIME}/children.py", "            await self._end_and_hear_out(process, taking)\n", ""),
        (f"{_OF_RUNTIME}/test_children.py::test_child_delivers_and_is_gone_after_the_end",),
    ),
    Row(
        "The whole node is not metered.",
        issues(ZEUS, 112),
        Guard(
            "daemon/jouled/model/device.py",
            "(DeviceKind.FEED, DeviceKind.OUTLET, DeviceKind.PSU, DeviceKind.NODE)",
            "(DeviceKind.FEED, DeviceKind.PSU)",
        ),
        (f"{_OF_CORE}/test_cases.py::test_node_boundary_and_residual_come_from_the_highest_meter",),
    ),
    Row(
        "A dashboard asks for series that are not there.",
        issues(ZEUS, 78),
        Guard(
            f"{_METRICS}/catalogue.py",
            '_gauge("device_power_watts", "live", ("device",)',
            '_gauge("device_draw_watts", "live", ("device",)',
        ),
        ("tests/grafana/test_grafana.py::test_expressions_name_only_published_series",),
    ),
    Row(
        "Counters that may not be read: nobody says how to let the daemon in.",
        (
            *COMPLAINTS["a guess in place of counters that may not be read"],
            *COMPLAINTS["a log full of one refusal, and a zone that crashes"],
        ),
        Guard(
            f"{_POWER}/sysfs_source.py",
            "        if isinstance(error, PermissionError):\n            return self._denied(path)\n",
            "",
        ),
        (f"{_OF_POWER}/test_rapl.py::TestPermission::test_denied_says_the_exact_mend",),
    ),
    Row(
        "A guess is used beside a measurement.",
        COMPLAINTS["a guess in place of counters that may not be read"],
        Guard(f"{_RUNTIME}/gate.py", "self._lets_in = not self._measures", "self._lets_in = True"),
        (f"{_OF_RUNTIME}/test_gate.py::test_estimate_is_dismissed_where_something_measures",),
    ),
    Row(
        "A guess is added to what was measured.",
        COMPLAINTS["a guess in place of counters that may not be read"],
        Guard(
            f"{_CORE}/ledger/tree.py",
            "return meter.device.quality is not Quality.ESTIMATED and not meter.estimated",
            "return True",
        ),
        (f"{_OF_CORE}/test_surroundings.py::test_an_estimated_host_enters_nothing",),
    ),
    Row(
        "One refusal fills the log.",
        COMPLAINTS["a log full of one refusal, and a zone that crashes"],
        Guard(
            f"{_RUNTIME}/sources.py",
            "if before is None or (before.state, before.reason) != (report.state, report.reason):",
            "if True:",
        ),
        (f"{_OF_RUNTIME}/test_sources.py::test_one_line_for_each_change",),
    ),
    Row(
        "A package with a number of two digits is a crash.",
        COMPLAINTS["a log full of one refusal, and a zone that crashes"],
        Guard(f"{_POWER}/rapl_zones.py", r"package-(\d+)(?:-die-(\d+))?", r"package-(\d)(?:-die-(\d+))?"),
        (f"{_OF_POWER}/test_rapl.py::TestZones::test_package_15_is_a_package",),
    ),
    Row(
        "Cray nodes: sockets and their sum are both counted.",
        issues(CEEMS, 239),
        Guard(f"{_POWER}/cray_counters.py", "if number or part not in numbered", "if part or not number"),
        (f"{_OF_POWER}/test_cray.py::TestDevices::test_sockets_one_by_one_where_they_are_told",),
    ),
    Row(
        "A virtual GPU without a meter is an error, or zero.",
        issues(CEEMS, 193),
        Guard(
            f"{_POWER}/nvml_find.py",
            'SourceState.ABSENT,\n        "no_meter",',
            'SourceState.DOWN,\n        "no_meter",',
        ),
        (f"{_OF_NVML}::TestReadings::test_no_gpu_with_a_meter",),
    ),
    Row(
        "Jobs are missing where cgroups lie otherwise.",
        issues(CEEMS, 284),
        outside="jouled reads no cgroups: an engine is a process and its children, and it tells its requests itself.",
    ),
    Row(
        "The energy of the whole node is charged to one of two models.",
        issues(AITRA, 89),
        Guard(
            f"{_CORE}/topology.py",
            "        joined = [part for part in parts if part[0] & own]\n"
            "        parts = [part for part in parts if not part[0] & own]\n",
            "        joined, parts = parts, []\n",
        ),
        (f"{_OF_CASES}::test_replicas_of_one_model_have_books_of_their_own",),
    ),
    Row(
        "CPU and memory of the host are not in the energy of a request.",
        (*issues(AITRA, 82), *issues("ai-dynamo/aiperf", 1009)),
        Guard(
            f"{_CORE}/ledger/tree.py",
            "if meter.device.kind in HOST_KINDS and meter.device.name not in compute",
            "if False",
        ),
        (f"{_OF_CORE}/test_surroundings.py::test_the_host_is_shared_by_whoever_is_resident",),
    ),
    Row(
        "A MIG slice pays as much idle power as the others, whatever its size.",
        issues(AITRA, 43),
        Guard(f"{_CORE}/attribution/partitions.py", "part = user.fraction / whole", "part = 1.0 / len(users)"),
        (f"{_OF_CASES}::test_partitions_share_idle_by_slice_and_the_rest_by_work",),
    ),
    Row(
        "Prefill is charged by the length of the prompt, cached or not.",
        issues(AITRA, 49),
        Guard(f"{_CORE}/attribution/engine.py", "computed = prompt - part.cached", "computed = prompt"),
        (f"{_OF_CASES}::test_cached_tokens_pay_no_prefill_but_their_share_of_attention_and_kv_reads",),
    ),
    Row(
        "GPUs that Kubernetes hands out by claim are not known.",
        issues(AITRA, 51),
        outside="jouled asks no cluster who holds a device: the engine's own processes tell which it uses.",
    ),
    Row(
        "A request that shares a batch has no energy of its own.",
        (*issues("vllm-project/vllm", 10748, 36440), *issues("1CatAI/1Cat-vLLM", 535)),
        Guard(
            f"{_CORE}/attribution/sharing.py",
            "slope = self._slopes[-1] = 1.0 / members if members > 0 else 0.0",
            "slope = self._slopes[-1] = 1.0 if members > 0 else 0.0",
        ),
        (f"{_OF_CORE}/attribution/test_sharing.py::test_a_cell_is_parted_among_those_who_are_there_at_each_instant",),
    ),
    Row(
        "Nobody holds the energy of requests against a known load.",
        (*issues("vllm-project/vllm", 10748), *issues("ai-dynamo/aiperf", 803)),
        Guard(
            f"{_CORE}/attribution/group.py",
            "shares: list[tuple[int, int, float]] = [(users[0], microjoules, 1.0)]",
            "shares: list[tuple[int, int, float]] = [(users[0], microjoules // 2, 1.0)]",
        ),
        (f"{_MISSING}::test_requests_have_the_energy_of_the_simulated_load",),
    ),
    Row(
        "A figure does not say how it came about.",
        issues("mlcommons/inference", 2558),
        Guard(f"{_CORE}/accounting/receipts.py", '        method["idle_power"] = idle_source\n', "        pass\n"),
        (f"{_MISSING}::test_a_receipt_says_method_lengths_and_validity",),
    ),
    Row(
        "A run with gaps counts like one without.",
        issues("mlcommons/inference", 2558),
        Guard(
            f"{_CORE}/ledger/validity.py",
            "elif gap_seconds > max(LONGEST_GAP_SECONDS, GAP_INTERVALS * usual_seconds):",
            "elif False:",
        ),
        (f"{_OF_CORE}/test_levels.py::test_gaps_and_silence_are_told_by_name",),
    ),
    Row(
        "Joules per token: of all tokens or of the generated ones?",
        issues("SemiAnalysisAI/InferenceX-app", 393),
        Guard(f"{_CORE}/live.py", '            kinds["prompt_computed"] = max(computed, 0)\n', "            pass\n"),
        (f"{_MISSING}::test_joules_by_all_tokens_and_by_generated_ones_can_be_told",),
    ),
    Row(
        "An energy tier of a benchmark: rate, time to settle, batch.",
        (*issues("mlcommons/inference", 2558), *issues("mlcommons/mlperf_client", 19)),
        outside="jouled meters live traffic and starts no runs: load and batch are those of the benchmark that does.",
    ),
)
