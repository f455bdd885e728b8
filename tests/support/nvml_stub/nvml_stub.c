/* A libnvidia-ml.so.1 for tests: the calls jouled makes, steered by small files.
 *
 * $NVML_STUB_DIR holds the files; without it every default below holds and no file is ever read. $NVML_STUB_GPUS is the
 * number of GPUs (default 2; the file `count` wins). Files of GPU N, all optional, one decimal number each:
 *   gpuN.milliwatts        power now (default 400000 + 100000 N); integrated into the energy counter
 *   gpuN.millijoules       the energy counter itself, instead of the integral
 *   gpuN.limit             enforced limit, milliwatts (default 700000)
 *   gpuN.module            module id (default: not supported)
 *   gpuN.twin              index of the GPU whose module meter this one shows too, fields 83 and 185 of scope 1
 *   gpuN.wobble            milliwatts by which power changes every millisecond
 *   gpuN.arch              NVML_DEVICE_ARCH_* (default: not supported)
 *   gpuN.device_id         PCI device id (default 0x2330)
 *   gpuN.mig               MIG instances, "GI CI SLICES" each on a line of its own; empty: MIG mode without instances
 *   gpuN.mig_slices        slices of the whole GPU (default 7)
 *   gpuN.processes         ids of the processes that compute on it, between spaces
 *   gpuN.stale             1: handles given out before are invalid, as after a reset
 *   gpuN.slow              microseconds that each reading of energy or power takes
 *   gpuN.CALL.code         return code of CALL: handle, name, uuid, pci, energy, power, limit, fields,
 *                          mig, attributes, processes, or `all`
 *   gpuN.field.ID.SCOPE    "code type value" of a field: return code, NVML_VALUE_TYPE, value
 * Files of the library: count, init.code, all.code.
 * Compile with -DWITHOUT_ENERGY or -DWITHOUT_FIELDS for a driver that lacks these symbols.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int Return;
typedef void *Device;
typedef unsigned long long U64;
enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, MAX_GPUS = 16, MAX_MIGS = 7 };

static int initialised;
/* A GPU, or a MIG instance of it: then `slices` is above 0 and there are no meters. */
static struct Gpu { int index, fresh; double joules, seen; unsigned gi, ci, slices; } gpus[MAX_GPUS], migs[MAX_GPUS][MAX_MIGS];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Reads the control file of this name; 0 where there is none. */
static int control(char *text, size_t size, const char *format, ...) {
    const char *directory = getenv("NVML_STUB_DIR");
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
    return 1;
}

static U64 gpu_number(int index, const char *key, U64 otherwise) {
    char text[64];
    return control(text, sizeof text, "gpu%d.%s", index, key) ? strtoull(text, NULL, 10) : otherwise;
}

static Return library_code(void) {
    char text[64];
    if (!initialised) return UNINITIALIZED;
    return control(text, sizeof text, "all.code") ? atoi(text) : SUCCESS;
}

static Return code(const struct Gpu *gpu, const char *call) {
    char text[64];
    Return library = library_code();
    if (library) return library;
    if (gpu->slices && strcmp(call, "name") && strcmp(call, "uuid") && strcmp(call, "attributes")) return NOT_SUPPORTED;
    if (gpu_number(gpu->index, "stale", 0) && !gpu->fresh) return INVALID_ARGUMENT;
    if (control(text, sizeof text, "gpu%d.all.code", gpu->index)) return atoi(text);
    return control(text, sizeof text, "gpu%d.%s.code", gpu->index, call) ? atoi(text) : SUCCESS;
}

static unsigned count(void) {
    char text[64];
    const char *environment = getenv("NVML_STUB_GPUS");
    unsigned gpus_here = control(text, sizeof text, "count") ? (unsigned)atoi(text) : environment ? (unsigned)atoi(environment) : 2;
    return gpus_here > MAX_GPUS ? MAX_GPUS : gpus_here;
}

static unsigned milliwatts(const struct Gpu *gpu) {
    U64 wobble = gpu_number(gpu->index, "wobble", 0) * ((U64)(now() * 1e3) % 997);
    return (unsigned)(gpu_number(gpu->index, "milliwatts", 400000 + 100000 * (U64)gpu->index) + wobble);
}

static U64 millijoules(struct Gpu *gpu) {
    double t = now();
    gpu->joules += (t - gpu->seen) * milliwatts(gpu) / 1e3;
    gpu->seen = t;
    return gpu_number(gpu->index, "millijoules", (U64)(gpu->joules * 1e3));
}

static void be_slow(const struct Gpu *gpu) {
    U64 microseconds = gpu_number(gpu->index, "slow", 0);
    if (microseconds) usleep((useconds_t)microseconds);
}

Return nvmlInitWithFlags(unsigned flags) {
    char text[64];
    (void)flags;
    if (control(text, sizeof text, "init.code") && atoi(text)) return atoi(text);
    if (!initialised++)
        for (int i = 0; i < MAX_GPUS; i++) gpus[i] = (struct Gpu){.index = i, .seen = now()};
    return SUCCESS;
}

Return nvmlShutdown(void) {
    if (!initialised) return UNINITIALIZED;
    initialised--;
    return SUCCESS;
}

const char *nvmlErrorString(Return value) {
    static char text[32];
    snprintf(text, sizeof text, "stub error %d", value);
    return text;
}

Return nvmlSystemGetDriverVersion(char *text, unsigned size) {
    snprintf(text, size, "999.1");
    return library_code();
}

Return nvmlDeviceGetCount_v2(unsigned *number) {
    *number = count();
    return library_code();
}

Return nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    if (index >= count()) return library_code() ? library_code() : INVALID_ARGUMENT;
    *device = &gpus[index];
    gpus[index].fresh = (int)gpu_number((int)index, "stale", 0);
    return code(&gpus[index], "handle");
}

Return nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) {
    unsigned index;
    if (sscanf(uuid, "GPU-%8u-stub", &index) != 1 || index >= count()) return INVALID_ARGUMENT;
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

Return nvmlDeviceGetName(Device device, char *text, unsigned size) {
    const struct Gpu *gpu = device;
    if (gpu->slices) snprintf(text, size, "NVIDIA Stub %d MIG %ug", gpu->index, gpu->slices);
    else snprintf(text, size, "NVIDIA Stub %d", gpu->index);
    return code(device, "name");
}

Return nvmlDeviceGetUUID(Device device, char *text, unsigned size) {
    const struct Gpu *gpu = device;
    if (gpu->slices) snprintf(text, size, "MIG-%08d-stub-%04u-%04u-000000000000", gpu->index, gpu->gi, gpu->ci);
    else snprintf(text, size, "GPU-%08d-stub-0000-0000-000000000000", gpu->index);
    return code(device, "uuid");
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} PciInfo;

Return nvmlDeviceGetPciInfo_v3(Device device, PciInfo *info) {
    memset(info, 0, sizeof *info);
    info->id = (unsigned)gpu_number(((struct Gpu *)device)->index, "device_id", 0x2330) << 16 | 0x10DE;
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", 0x10 + ((struct Gpu *)device)->index);
    return code(device, "pci");
}

Return nvmlDeviceGetModuleId(Device device, unsigned *module) {
    U64 id = gpu_number(((struct Gpu *)device)->index, "module", ~0ULL);
    *module = (unsigned)id;
    return id == ~0ULL ? NOT_SUPPORTED : code(device, "module");
}

Return nvmlDeviceGetArchitecture(Device device, unsigned *architecture) {
    U64 told = gpu_number(((struct Gpu *)device)->index, "arch", ~0ULL);
    *architecture = (unsigned)told;
    return told == ~0ULL ? NOT_SUPPORTED : code(device, "arch");
}

/* Reads the MIG instances of a GPU; -1 where MIG mode is off. */
static int mig_instances(const struct Gpu *gpu) {
    char text[512];
    int found = 0, length = 0;
    if (!control(text, sizeof text, "gpu%d.mig", gpu->index)) return -1;
    for (const char *rest = text; found < MAX_MIGS; rest += length, found++) {
        struct Gpu *mig = &migs[gpu->index][found];
        mig->index = gpu->index;
        if (sscanf(rest, "%u %u %u%n", &mig->gi, &mig->ci, &mig->slices, &length) != 3) break;
    }
    return found;
}

Return nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
    *current = *pending = mig_instances(device) >= 0;
    return code(device, "mig");
}

Return nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned *number) {
    const struct Gpu *gpu = device;
    *number = mig_instances(gpu) < 0 ? 0 : (unsigned)gpu_number(gpu->index, "mig_slices", 7);
    return code(device, "mig");
}

Return nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned index, Device *mig) {
    const struct Gpu *gpu = device;
    if ((int)index >= mig_instances(gpu)) return NOT_FOUND;
    *mig = &migs[gpu->index][index];
    return code(device, "mig");
}

Return nvmlDeviceGetGpuInstanceId(Device device, unsigned *id) {
    *id = ((struct Gpu *)device)->gi;
    return library_code();
}

Return nvmlDeviceGetComputeInstanceId(Device device, unsigned *id) {
    *id = ((struct Gpu *)device)->ci;
    return library_code();
}

typedef struct {
    unsigned multiprocessors, copy, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices;
    U64 memory;
} Attributes;

Return nvmlDeviceGetAttributes_v2(Device device, Attributes *attributes) {
    memset(attributes, 0, sizeof *attributes);
    attributes->gpu_slices = attributes->compute_slices = ((struct Gpu *)device)->slices;
    return code(device, "attributes");
}

Return nvmlDeviceGetPowerUsage(Device device, unsigned *power) {
    be_slow(device);
    *power = milliwatts(device);
    return code(device, "power");
}

Return nvmlDeviceGetEnforcedPowerLimit(Device device, unsigned *limit) {
    *limit = (unsigned)gpu_number(((struct Gpu *)device)->index, "limit", 700000);
    return code(device, "limit");
}

#ifndef WITHOUT_ENERGY
Return nvmlDeviceGetTotalEnergyConsumption(Device device, U64 *energy) {
    be_slow(device);
    *energy = millijoules(device);
    return code(device, "energy");
}
#endif

#ifndef WITHOUT_FIELDS
typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    int type;
    Return code;
    union {
        double d;
        unsigned ui;
        unsigned long ul;
        U64 ull;
        long long sll;
        int si;
        unsigned short us;
    } value;
} Field;

static void set_field(Field *field, Return result, int type, const char *text) {
    field->code = result;
    field->type = type;
    memset(&field->value, 0xA5, sizeof field->value); /* what lies beside a narrow member is undefined */
    switch (type) {
        case 0: field->value.d = strtod(text, NULL); break;
        case 1: field->value.ui = (unsigned)strtoull(text, NULL, 10); break;
        case 2: field->value.ul = (unsigned long)strtoull(text, NULL, 10); break;
        case 3: field->value.ull = strtoull(text, NULL, 10); break;
        case 4: field->value.sll = strtoll(text, NULL, 10); break;
        case 5: field->value.si = (int)strtoll(text, NULL, 10); break;
        case 6: field->value.us = (unsigned short)strtoull(text, NULL, 10); break;
        default: break;
    }
}

static void fill_field(struct Gpu *gpu, Field *field) {
    char text[128], number[64];
    int result, type;
    U64 twin = gpu_number(gpu->index, "twin", MAX_GPUS);
    if (control(text, sizeof text, "gpu%d.field.%u.%u", gpu->index, field->field, field->scope) &&
        sscanf(text, "%d %d %63s", &result, &type, number) == 3) {
        set_field(field, result, type, number);
    } else if (field->scope == 1 && (field->field == 83 || field->field == 185) && twin < MAX_GPUS) {
        snprintf(number, sizeof number, "%llu", field->field == 83 ? millijoules(&gpus[twin]) : milliwatts(&gpus[twin]));
        set_field(field, SUCCESS, 3, number);
    } else if (field->scope == 0 && field->field == 83) {
        snprintf(number, sizeof number, "%llu", millijoules(gpu));
        set_field(field, SUCCESS, 3, number);
    } else if (field->scope == 0 && (field->field == 185 || field->field == 186)) {
        snprintf(number, sizeof number, "%u", milliwatts(gpu));
        set_field(field, SUCCESS, 1, number);
    } else {
        set_field(field, NOT_SUPPORTED, 1, "0");
    }
}

Return nvmlDeviceGetFieldValues(Device device, int number, Field *fields) {
    Return result = code(device, "fields");
    if (result) return result;
    be_slow(device);
    for (int i = 0; i < number; i++) fill_field(device, &fields[i]);
    return SUCCESS;
}
#endif

struct Process {
    unsigned pid;
    U64 memory;
    unsigned gpu_instance, compute_instance;
};

Return nvmlDeviceGetComputeRunningProcesses_v3(struct Gpu *gpu, unsigned *room, struct Process *found) {
    char text[256], *next = text;
    unsigned here = 0;
    Return answer = code(gpu, "processes");
    if (answer) return answer;
    if (!control(text, sizeof text, "gpu%d.processes", gpu->index)) text[0] = 0;
    for (char *word = strtok_r(text, " ", &next); word; word = strtok_r(NULL, " ", &next), here++)
        if (found && here < *room) found[here] = (struct Process){.pid = (unsigned)atoi(word)};
    unsigned had = *room;
    *room = here;
    return here > had || (here && !found) ? INSUFFICIENT_SIZE : SUCCESS;
}
