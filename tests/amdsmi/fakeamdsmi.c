// An AMD GPU that is not there: what the meter asks of libamd_smi.so 7, over a known constant power.
//
// Each of FAKE_AMD_COUNT boards (default 1) draws FAKE_AMD_W watts (default 300), the second twice as much. Counts of
// the energy counter are of 15.259 µJ. FAKE_AMD_FAULT: no-counter, no-current (only the average power), nothing (neither
// energy nor power), no-driver, denied. All other functions of the library are made by the test, and answer that they
// are not supported.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 2, NO_PERMISSION = 10, DRIVER_NOT_LOADED = 34 };
typedef struct {
    uint64_t socket_power;
    uint32_t current_socket_power, average_socket_power;
    uint64_t gfx_voltage, soc_voltage, mem_voltage;
    uint32_t power_limit;
    uint64_t reserved[18];
} power_info;
typedef struct {
    char market_name[256];
    uint32_t vendor_id;
    char vendor_name[256];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t rev_id;
    char asic_serial[256];
    uint32_t oam_id, num_of_compute_units;
    uint64_t target_graphics_version;
    uint32_t subsystem_id, reserved[21];
} asic_info;
typedef struct { char name[256]; uint32_t pid; uint64_t mem, gfx, enc; uint32_t reserved1[12]; uint64_t gtt, cpu, vram;
                 uint32_t reserved2[10]; char container[256]; uint32_t occupancy, reserved3[11]; } process_info;
typedef struct { char version[256], date[256], name[256]; } driver_info;
typedef struct { uint64_t cap, usual, dpm, least, most, reserved[3]; } power_cap;

static const float RESOLUTION_UJ = 15.259f;

static int fault(const char *name) {
    const char *mode = getenv("FAKE_AMD_FAULT");
    return mode && !strcmp(mode, name);
}

static uint32_t count(void) {
    const char *text = getenv("FAKE_AMD_COUNT");
    return text ? (uint32_t)atoi(text) : 1;
}

static double watts(void *board) {
    const char *text = getenv("FAKE_AMD_W");
    return (text ? atof(text) : 300) * (double)(intptr_t)board;
}

static uint64_t nanoseconds(void) {
    struct timespec clock;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    return (uint64_t)clock.tv_sec * 1000000000u + (uint64_t)clock.tv_nsec;
}

int amdsmi_init(uint64_t flags) {
    return fault("no-driver") ? DRIVER_NOT_LOADED : SUCCESS;
}

int amdsmi_get_socket_handles(uint32_t *n, void **sockets) {
    if (sockets) sockets[0] = (void *)1;
    *n = 1;
    return SUCCESS;
}

int amdsmi_get_processor_handles(void *socket, uint32_t *n, void **boards) {
    *n = count();
    for (uint32_t i = 0; boards && i < *n; i++) boards[i] = (void *)(intptr_t)(i + 1);
    return SUCCESS;
}

int amdsmi_get_gpu_device_uuid(void *board, uint32_t *length, char *uuid) {
    if (fault("denied")) return NO_PERMISSION;
    snprintf(uuid, *length, "fa4e74a1-0000-1000-8000-00000000000%d", (int)(intptr_t)board);
    return SUCCESS;
}

int amdsmi_get_gpu_device_bdf(void *board, uint64_t *bdf) {
    *bdf = (uint64_t)(0x40 + (intptr_t)board) << 8;
    return SUCCESS;
}

int amdsmi_get_energy_count(void *board, uint64_t *counts, float *resolution_uj, uint64_t *at_ns) {
    if (fault("no-counter") || fault("nothing")) return NOT_SUPPORTED;
    *at_ns = nanoseconds();
    *counts = (uint64_t)(watts(board) * (double)*at_ns / 1000 / RESOLUTION_UJ);
    *resolution_uj = RESOLUTION_UJ;
    return SUCCESS;
}

int amdsmi_get_power_info(void *board, power_info *info) {
    memset(info, 0, sizeof *info);
    if (fault("nothing")) return NOT_SUPPORTED;
    info->current_socket_power = fault("no-current") ? 0xFFFF : (uint32_t)watts(board);
    info->average_socket_power = (uint32_t)watts(board);
    return SUCCESS;
}

int amdsmi_get_gpu_asic_info(void *board, asic_info *info) {
    memset(info, 0, sizeof *info);
    strcpy(info->market_name, "FAKE Instinct");
    strcpy(info->asic_serial, "fa4e");
    return SUCCESS;
}

int amdsmi_get_gpu_driver_info(void *board, driver_info *info) {
    memset(info, 0, sizeof *info);
    strcpy(info->version, "9.9.9-FAKE");
    return SUCCESS;
}

int amdsmi_get_power_cap_info(void *board, uint32_t sensor, power_cap *info) {
    memset(info, 0, sizeof *info);
    info->cap = 750000000;
    return SUCCESS;
}

int amdsmi_get_temp_metric(void *board, int sensor, int metric, int64_t *celsius) {
    *celsius = 51;
    return SUCCESS;
}

int amdsmi_get_gpu_memory_usage(void *board, int kind, uint64_t *bytes) {
    *bytes = 2000000000;
    return SUCCESS;
}

int amdsmi_get_gpu_process_list(void *board, uint32_t *n, process_info *processes) {
    memset(processes, 0, sizeof *processes);
    strcpy(processes[0].name, "python");
    processes[0].pid = 70 + (uint32_t)(intptr_t)board;
    *n = 1;
    return SUCCESS;
}
