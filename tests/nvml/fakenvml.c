// A GPU that is not there: NVML's symbols over one known energy function E(t), so that tests know every joule.
//
// Sensor (after Yang et al., SC'24): values are published every 100 ms; instant power is the mean of the 25 ms before
// publication, PowerUsage that of 1 s; the counter is E in mJ. The load repeats every 4 s: 0.2 s at 250 W, 3.0 s at
// 600 W, 0.3 s at 450 W, 0.5 s at 70 W, together 2020 J; or FAKE_NVML_CONST_W, constant. The second device draws twice
// as much, the third three times. A field's timestamp is the time of its publication.
//
// Environment: FAKE_NVML_NOW_FILE holds the virtual time in seconds (absent: the real clock). FAKE_NVML_FAULT, from
// the time FAKE_NVML_FAULT_AT on: unsupported (neither energy nor power), no-counter, no-fields (only the old calls),
// zero (everything reads 0), frozen (the counter stops), reset (the counter starts again at 0), drift (power reads 4 %
// high), gain (10 % high), lost, unloaded, uninitialized, denied (NVML's errors of these names, from every call that
// reads a device). FAKE_NVML_MIG: the device is in MIG mode. FAKE_NVML_COUNT: how many devices there are.
// FAKE_NVML_UNLIKE: each device has a name of its own. FAKE_NVML_CLOSED: the index of a device that may not be opened.
// FAKE_NVML_REASONS: the bits of the clocks' event reasons. FAKE_NVML_PIDS: the processes that compute on each device, as
// "7,8"; without it the driver does not tell them.
// Compiled with -DWITHOUT_FIELDS the library lacks nvmlDeviceGetFieldValues, with -DWITHOUT_ENERGY also the old counter.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
typedef struct {
    uint32_t fieldId, scopeId;
    int64_t timestamp, latencyUsec;
    uint32_t valueType, nvmlReturn;
    union { double d; uint32_t ui; unsigned long ul; unsigned long long ull; long long sll; int32_t si; uint16_t us; } value;
} field_value;

static const double SECONDS[4] = {0.2, 3.0, 0.3, 0.5}, WATTS[4] = {250, 600, 450, 70};
static int started = 0;

static double now(void) {
    const char *path = getenv("FAKE_NVML_NOW_FILE");
    double t = 0;
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        if (fscanf(file, "%lf", &t) != 1) t = 0;
        fclose(file);
        return t;
    }
    struct timespec clock;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    return clock.tv_sec + clock.tv_nsec * 1e-9;
}

static double joules(double t) {
    const char *constant = getenv("FAKE_NVML_CONST_W");
    if (constant) return atof(constant) * t;
    double period_s = 0, period_j = 0, sum;
    for (int i = 0; i < 4; i++) period_s += SECONDS[i], period_j += SECONDS[i] * WATTS[i];
    long long periods = (long long)(t / period_s);
    double rest = t - periods * period_s;
    sum = periods * period_j;
    for (int i = 0; i < 4; i++) {
        double part = rest < SECONDS[i] ? rest : SECONDS[i];
        sum += part * WATTS[i];
        rest -= part;
    }
    return sum;
}

static double published(double t) { return (long long)(t * 10 + 1e-6) / 10.0; }

static int fault(const char *name) {
    const char *mode = getenv("FAKE_NVML_FAULT"), *at = getenv("FAKE_NVML_FAULT_AT");
    return mode && !strcmp(mode, name) && now() >= (at ? atof(at) : 0);
}

static int refusal(void) {  // SUCCESS while the devices can be read
    if (fault("lost")) return GPU_IS_LOST;
    if (fault("unloaded")) return DRIVER_NOT_LOADED;
    if (fault("uninitialized")) return UNINITIALIZED;
    return fault("denied") ? NO_PERMISSION : SUCCESS;
}

static int index_of(void *device) { return (int)(intptr_t)device - 1; }

static int counter_mj(void *device, unsigned long long *out) {
    const char *at = getenv("FAKE_NVML_FAULT_AT");
    double t = published(now()), since = at ? atof(at) : 0;
    if (refusal()) return refusal();
    if (fault("unsupported") || fault("no-counter")) return NOT_SUPPORTED;
    if (fault("frozen")) t = since;
    *out = (unsigned long long)((joules(t) - (fault("reset") ? joules(since) : 0)) * (index_of(device) + 1) * 1000 + 0.5);
    if (fault("zero")) *out = 0;
    return SUCCESS;
}

static int power_mw(void *device, double window, unsigned *out) {
    double t = published(now()), gain = (fault("drift") ? 1.04 : fault("gain") ? 1.10 : 1) * (index_of(device) + 1);
    if (refusal()) return refusal();
    if (fault("unsupported")) return NOT_SUPPORTED;
    *out = fault("zero") ? 0 : (unsigned)((joules(t) - joules(t - window)) / window * gain * 1000 + 0.5);
    return SUCCESS;
}

static unsigned count(void) { return getenv("FAKE_NVML_COUNT") ? atoi(getenv("FAKE_NVML_COUNT")) : 1; }
static void uuid_of(void *device, char *out, unsigned size) {
    snprintf(out, size, "GPU-fa4e000%d-0000-4000-8000-000000000000", index_of(device));
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; started++; return SUCCESS; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return started-- > 0 ? SUCCESS : UNINITIALIZED; }
const char *nvmlErrorString(int code) { (void)code; return "Fake NVML error"; }  // pynvml has its own words for most
int nvmlSystemGetDriverVersion(char *out, unsigned size) { snprintf(out, size, "999.99.99-FAKE"); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = count(); return started ? SUCCESS : UNINITIALIZED; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    const char *closed = getenv("FAKE_NVML_CLOSED");
    *out = (void *)(intptr_t)(index + 1);
    if (closed && (unsigned)atoi(closed) == index) return NO_PERMISSION;
    return index < count() ? SUCCESS : INVALID;
}
int nvmlDeviceGetUUID(void *device, char *out, unsigned size) { uuid_of(device, out, size); return SUCCESS; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    char known[80];
    for (unsigned i = 0; i < count(); i++) {
        nvmlDeviceGetHandleByIndex_v2(i, out);
        uuid_of(*out, known, sizeof known);
        if (!strcmp(uuid, known)) return SUCCESS;
    }
    return NOT_FOUND;
}
int nvmlDeviceGetName(void *device, char *out, unsigned size) {
    if (getenv("FAKE_NVML_UNLIKE")) snprintf(out, size, "FAKE GPU %c of the tests", 'A' + index_of(device));
    else snprintf(out, size, "FAKE GPU of the tests");
    return SUCCESS;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    (void)device;
    *current = *pending = getenv("FAKE_NVML_MIG") != NULL;
    return SUCCESS;
}
static int tell(unsigned value, unsigned *out) { *out = value; return refusal(); }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out) {
    (void)sensor;
    return tell(55 + index_of(device), out);
}
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *out) { (void)device; return tell(700000, out); }
int nvmlDeviceGetPerformanceState(void *device, int *out) { (void)device; return tell(2, (unsigned *)out); }
int nvmlDeviceGetPersistenceMode(void *device, int *out) { (void)device; return tell(1, (unsigned *)out); }
int nvmlDeviceGetArchitecture(void *device, unsigned *out) {  // Pascal has no counter, Hopper has
    (void)device;
    return tell(fault("no-counter") ? 4 : 9, out);
}
int nvmlDeviceGetClockInfo(void *device, int type, unsigned *out) {  // 1: SM, 2: memory
    (void)device;
    return type == 1 ? tell(1980, out) : type == 2 ? tell(2619, out) : INVALID;
}
#ifdef WITHOUT_FIELDS  // an old driver
#define nvmlDeviceGetCurrentClocksEventReasons nvmlDeviceGetCurrentClocksThrottleReasons
#endif
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *out) {
    (void)device;
    *out = getenv("FAKE_NVML_REASONS") ? strtoull(getenv("FAKE_NVML_REASONS"), NULL, 0) : 0;
    return refusal();
}
int nvmlDeviceGetViolationStatus(void *device, unsigned policy, unsigned long long *out) {  // reference and violation, ns
    (void)device;
#ifdef WITHOUT_FIELDS
    return NOT_SUPPORTED;
#endif
    out[0] = now() * 1e9, out[1] = policy == 0 ? now() * 0.25e9 : 0;  // a quarter of the time at the power limit
    return refusal();
}
#ifndef WITHOUT_FIELDS  // an old driver has the call of an older version
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_info;
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_info *out) {
    const char *rest = getenv("FAKE_NVML_PIDS");
    unsigned n = 0, room = *count;
    (void)device;
    if (!rest) return NOT_SUPPORTED;
    for (; *rest; rest += strcspn(rest, ","), rest += *rest == ',') {
        if (n < room) out[n] = (process_info){atoi(rest), 1000, 0, 0};
        n++;
    }
    *count = n;
    return n > room ? INSUFFICIENT_SIZE : SUCCESS;
}
#endif
#ifdef WITHOUT_FIELDS
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *out) {  // total, free, used
    (void)device;
    out[0] = 80000000000, out[1] = 76000000000, out[2] = 4000000000;
    return refusal();
}
#else
int nvmlDeviceGetMemoryInfo_v2(void *device, unsigned long long *out) {  // version, total, reserved, free, used
    (void)device;
    out[1] = 80000000000, out[2] = 500000000, out[3] = 76000000000, out[4] = 3500000000;
    return refusal();
}
#endif
int nvmlDeviceGetPowerUsage(void *device, unsigned *out) { return power_mw(device, 1.0, out); }
#ifndef WITHOUT_ENERGY
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *out) { return counter_mj(device, out); }
#endif
#ifndef WITHOUT_FIELDS
int nvmlDeviceGetFieldValues(void *device, int n, field_value *values) {
    if (refusal()) return refusal();
    for (field_value *v = values; v < values + n; v++) {
        v->timestamp = (int64_t)(published(now()) * 1e6 + 0.5);
        v->latencyUsec = 0;
        v->nvmlReturn = NOT_SUPPORTED;
        if (v->scopeId != 0 || fault("no-fields")) continue;
        if (v->fieldId == 83) v->valueType = 3, v->nvmlReturn = counter_mj(device, &v->value.ull);
        if (v->fieldId == 185) v->valueType = 1, v->nvmlReturn = power_mw(device, 1.0, &v->value.ui);
        if (v->fieldId == 186) v->valueType = 1, v->nvmlReturn = power_mw(device, 0.025, &v->value.ui);
    }
    return SUCCESS;
}
#endif
