/* A libamd_smi.so for tests: the calls jouled makes, in the layout of amdsmi 7.0.2, steered by small files.
 *
 * All other symbols that the binding wants at import are weak stubs (`build` writes them from the installed binding).
 * $AMDSMI_STUB_DIR holds the files, all optional, one decimal number each where nothing else is said:
 *   gpuN.watts             power now (default 400 + 100 N); integrated into the energy counter
 *   gpuN.ticks             the energy counter itself, instead of the integral
 *   gpuN.scale             factor on the integral (a counter in other units)
 *   gpuN.resolution        microjoules of one tick (default 15.3, as the library says where 2^-16 J is meant)
 *   gpuN.stamp             time stamp of the counter, ns (default the monotonic clock)
 *   gpuN.current, .average the gauges (default watts, and all ones: as an MI300)
 *   gpuN.cap               enforced limit (default 750000000, microwatts)
 *   gpuN.partitions        how many processors the socket has (default 1); only the first tells energy and power
 *   gpuN.hidden            how many of the first of them this process does not see (default 0)
 *   gpuN.partition_id      what the processor says of itself (default its number in the socket)
 *   gpuN.kfd               the compute driver's number of the first processor (default 1000 (1 + N)), then counting on
 *   gpuN.mode              SPX, DPX, QPX, CPX (text)
 *   gpuN.xcp               number of partitions that the metrics tell (default all ones)
 *   gpuN.bdf               "domain bus device function", hexadecimal (default 0 (10 + 10 N) 0 0)
 *   gpuN.name              product (text)
 *   gpuN.throttle          "accumulation prochot ppt socket vr hbm"
 *   gpuN.slow              microseconds that each reading of energy or power takes
 *   gpuN.CALL.code         return code of CALL: bdf, uuid, kfd, energy, power, cap, metrics, driver, asic, mode, or `all`
 * Files of the library: count (default 2), init.code, all.code.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int Status;
enum { SUCCESS = 0, INVAL = 1, NOT_SUPPORTED = 2, NOT_INIT = 32, MAX_GPUS = 16, MAX_PARTITIONS = 8 };

typedef struct { int gpu, partition; } Processor;
static Processor processors[MAX_GPUS][MAX_PARTITIONS];
static struct Counter { double joules, seen; } counters[MAX_GPUS];
static int initialised;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Reads the control file of this name, without its line end; 0 where there is none. */
static int control(char *text, size_t size, const char *format, ...) {
    const char *directory = getenv("AMDSMI_STUB_DIR");
    if (!directory) return 0;
    char name[128], path[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t length = fread(text, 1, size - 1, file);
    fclose(file);
    text[length] = 0;
    text[strcspn(text, "\n")] = 0;
    return 1;
}

static uint64_t gpu_number(int gpu, const char *key, uint64_t otherwise) {
    char text[64];
    return control(text, sizeof text, "gpu%d.%s", gpu, key) ? strtoull(text, NULL, 10) : otherwise;
}

static double gpu_real(int gpu, const char *key, double otherwise) {
    char text[64];
    return control(text, sizeof text, "gpu%d.%s", gpu, key) ? strtod(text, NULL) : otherwise;
}

static Status library_code(void) {
    char text[64];
    if (!initialised) return NOT_INIT;
    return control(text, sizeof text, "all.code") ? atoi(text) : SUCCESS;
}

static Status code(const Processor *processor, const char *call) {
    char text[64];
    Status library = library_code();
    if (library) return library;
    if (control(text, sizeof text, "gpu%d.all.code", processor->gpu)) return atoi(text);
    return control(text, sizeof text, "gpu%d.%s.code", processor->gpu, call) ? atoi(text) : SUCCESS;
}

static unsigned count(void) {
    char text[64];
    unsigned here = control(text, sizeof text, "count") ? (unsigned)atoi(text) : 2;
    return here > MAX_GPUS ? MAX_GPUS : here;
}

static uint64_t watts(int gpu) { return gpu_number(gpu, "watts", 400 + 100 * (uint64_t)gpu); }

static void be_slow(int gpu) {
    uint64_t microseconds = gpu_number(gpu, "slow", 0);
    if (microseconds) usleep((useconds_t)microseconds);
}

Status amdsmi_init(uint64_t flags) {
    char text[64];
    (void)flags;
    if (control(text, sizeof text, "init.code") && atoi(text)) return atoi(text);
    if (!initialised++)
        for (int gpu = 0; gpu < MAX_GPUS; gpu++) {
            counters[gpu] = (struct Counter){1000.0, now()};
            for (int partition = 0; partition < MAX_PARTITIONS; partition++)
                processors[gpu][partition] = (Processor){gpu, partition};
        }
    return SUCCESS;
}

Status amdsmi_shut_down(void) {
    if (!initialised) return NOT_INIT;
    initialised--;
    return SUCCESS;
}

Status amdsmi_get_socket_handles(uint32_t *number, void **handles) {
    *number = count();
    for (unsigned gpu = 0; handles && gpu < *number; gpu++) handles[gpu] = processors[gpu];
    return library_code();
}

Status amdsmi_get_processor_handles(void *socket, uint32_t *number, void **handles) {
    Processor *first = socket;
    uint64_t here = gpu_number(first->gpu, "partitions", 1);
    uint64_t hidden = gpu_number(first->gpu, "hidden", 0);
    *number = (uint32_t)((here > MAX_PARTITIONS ? MAX_PARTITIONS : here) - hidden);
    for (unsigned partition = 0; handles && partition < *number; partition++) handles[partition] = first + hidden + partition;
    return library_code();
}

Status amdsmi_get_gpu_device_bdf(void *handle, uint64_t *bdf) {
    Processor *processor = handle;
    char text[64];
    unsigned domain = 0, bus = 0x10 * (unsigned)(processor->gpu + 1), device = 0, function = 0;
    if (control(text, sizeof text, "gpu%d.bdf", processor->gpu)) sscanf(text, "%x %x %x %x", &domain, &bus, &device, &function);
    function += (unsigned)processor->partition;
    *bdf = (uint64_t)domain << 16 | (uint64_t)(bus & 0xff) << 8 | (uint64_t)(device & 0x1f) << 3 | (function & 7);
    return code(processor, "bdf");
}

Status amdsmi_get_gpu_device_uuid(void *handle, unsigned *length, char *uuid) {
    Processor *processor = handle;
    snprintf(uuid, *length, "%02dff74a0-0000-1000-80aa-%012d", processor->partition, processor->gpu);
    return code(processor, "uuid");
}

typedef struct { uint64_t kfd; uint32_t node, partition, reserved[12]; } Kfd;
Status amdsmi_get_gpu_kfd_info(void *handle, Kfd *info) {
    Processor *processor = handle;
    memset(info, 0, sizeof *info);
    info->kfd = gpu_number(processor->gpu, "kfd", 1000 * (uint64_t)(processor->gpu + 1)) + (uint64_t)processor->partition;
    info->partition = (uint32_t)gpu_number(processor->gpu, "partition_id", (uint64_t)processor->partition);
    return code(processor, "kfd");
}

typedef struct {
    char market_name[256];
    uint32_t vendor_id;
    char vendor_name[256];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t rev_id;
    char asic_serial[256];
    uint32_t oam_id, compute_units, padding;
    uint64_t graphics_version;
    uint32_t subsystem_id, reserved[21];
} Asic;
Status amdsmi_get_gpu_asic_info(void *handle, Asic *info) {
    Processor *processor = handle;
    memset(info, 0, sizeof *info);
    if (!control(info->market_name, sizeof info->market_name, "gpu%d.name", processor->gpu))
        snprintf(info->market_name, sizeof info->market_name, "AMD Instinct Stub %d", processor->gpu);
    return code(processor, "asic");
}

typedef struct { char version[256], date[256], name[256]; } Driver;
Status amdsmi_get_gpu_driver_info(void *handle, Driver *info) {
    memset(info, 0, sizeof *info);
    strcpy(info->version, "6.14.14");
    return code(handle, "driver");
}

Status amdsmi_get_gpu_compute_partition(void *handle, char *mode, uint32_t length) {
    Processor *processor = handle;
    if (!control(mode, length, "gpu%d.mode", processor->gpu)) snprintf(mode, length, "SPX");
    return code(processor, "mode");
}

typedef struct {
    uint64_t socket_power;
    uint32_t current, average;
    uint64_t gfx_voltage, soc_voltage, mem_voltage;
    uint32_t limit, padding;
    uint64_t reserved[18];
} Power;
Status amdsmi_get_power_info(void *handle, Power *power) {
    Processor *processor = handle;
    memset(power, 0, sizeof *power);
    be_slow(processor->gpu);
    if (processor->partition == 0) {
        power->current = (uint32_t)gpu_number(processor->gpu, "current", watts(processor->gpu));
        power->average = (uint32_t)gpu_number(processor->gpu, "average", 0xFFFFFFFF);
        power->socket_power = power->current;
    }
    return code(processor, "power");
}

Status amdsmi_get_energy_count(void *handle, uint64_t *ticks, float *resolution, uint64_t *stamp) {
    Processor *processor = handle;
    int gpu = processor->gpu;
    if (processor->partition) return NOT_SUPPORTED;
    be_slow(gpu);
    double t = now();
    counters[gpu].joules += (t - counters[gpu].seen) * (double)watts(gpu) * gpu_real(gpu, "scale", 1.0);
    counters[gpu].seen = t;
    *ticks = gpu_number(gpu, "ticks", (uint64_t)(counters[gpu].joules * 65536.0));
    *resolution = (float)gpu_real(gpu, "resolution", 15.3);
    *stamp = gpu_number(gpu, "stamp", (uint64_t)(t * 1e9));
    return code(processor, "energy");
}

typedef struct { uint64_t cap, default_cap, dpm, min, max, reserved[3]; } Cap;
Status amdsmi_get_power_cap_info(void *handle, uint32_t sensor, Cap *cap) {
    Processor *processor = handle;
    (void)sensor;
    memset(cap, 0, sizeof *cap);
    cap->cap = gpu_number(processor->gpu, "cap", 750000000);
    return code(processor, "cap");
}

typedef struct {
    uint32_t busy[8];
    uint16_t jpeg[40], vcn[4];
    uint64_t counters[6][8];
} Xcp;
typedef struct {
    uint16_t size;
    uint8_t format, content;
    uint16_t temperatures[6], activities[3], average_power;
    uint64_t energy, clock;
    uint16_t frequencies[14];
    uint32_t throttle_status;
    uint16_t fan, width, speed;
    uint32_t gfx_activity, mem_activity;
    uint16_t hbm[4];
    uint64_t firmware;
    uint16_t voltages[3];
    uint64_t independent_throttle;
    uint16_t current_power, vcn[4];
    uint32_t lock;
    uint16_t xgmi_width, xgmi_speed;
    uint64_t pcie[5], xgmi_read[8], xgmi_write[8];
    uint16_t gfxclks[8], socclks[4], vclk0s[4], dclk0s[4], jpeg[32];
    uint32_t nak_sent, nak_received;
    uint64_t accumulation, prochot, ppt, socket, vr, memory;
    uint16_t partitions;
    Xcp xcp[8];
    uint32_t recovery;
    uint64_t bandwidth;
    uint16_t links[8];
} Metrics;
Status amdsmi_get_gpu_metrics_info(void *handle, Metrics *metrics) {
    Processor *processor = handle;
    char text[256];
    memset(metrics, 0xFF, sizeof *metrics);
    if (control(text, sizeof text, "gpu%d.throttle", processor->gpu)) {
        unsigned long long v[6] = {0};
        sscanf(text, "%llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5]);
        metrics->accumulation = v[0];
        metrics->prochot = v[1];
        metrics->ppt = v[2];
        metrics->socket = v[3];
        metrics->vr = v[4];
        metrics->memory = v[5];
    }
    metrics->partitions = (uint16_t)gpu_number(processor->gpu, "xcp", 0xFFFF);
    return code(processor, "metrics");
}
