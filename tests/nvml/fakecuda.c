// A CUDA driver without a GPU: the few symbols that quantwatt/jobs/cuda_driver.py asks, over what the environment says.
//
// FAKE_CUDA_COUNT: how many devices there are (1). FAKE_CUDA_VERSION: of CUDA, as 12040. FAKE_CUDA_INIT: what cuInit
// returns. FAKE_CUDA_HANG: cuInit does not return. FAKE_CUDA_MIG: each device is a MIG slice. FAKE_CUDA_NOISE: a line
// that is printed on stdout beside the answer, before and after.
// CUDA_VISIBLE_DEVICES is obeyed as the driver does: numbers or beginnings of UUIDs, up to the first that names none.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int seen[16], n_seen = 0;

static int number(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
static void noise(void) { if (getenv("FAKE_CUDA_NOISE")) puts(getenv("FAKE_CUDA_NOISE")), fflush(stdout); }
static void uuid_of(int board, int slice, unsigned char *out) {
    const unsigned char known[16] = {0xfa, 0x4e, 0, board, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, slice};
    memcpy(out, known, 16);
}

static int board_of(const char *name) {
    char known[32];
    int count = number("FAKE_CUDA_COUNT", 1);
    for (int board = 0; board < count; board++) {
        snprintf(known, sizeof known, "GPU-fa4e000%d", board);
        if (!strncmp(name, known, strlen(known)) || (strlen(name) > 3 && !strncmp(known, name, strlen(name)))) return board;
    }
    char *end;
    long index = strtol(name, &end, 10);
    return end != name && !*end && index >= 0 && index < count ? index : -1;
}

int cuInit(unsigned flags) {
    (void)flags;
    noise();
    atexit(noise);
    while (getenv("FAKE_CUDA_HANG")) sleep(1);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!visible) {
        for (n_seen = 0; n_seen < number("FAKE_CUDA_COUNT", 1); n_seen++) seen[n_seen] = n_seen;
    } else {
        char names[512], *rest = names;
        snprintf(names, sizeof names, "%s", visible);
        for (char *name; (name = strsep(&rest, ",")) && n_seen < 16; n_seen++) {
            while (*name == ' ') name++;
            if ((seen[n_seen] = board_of(name)) < 0) break;
        }
    }
    return getenv("FAKE_CUDA_INIT") ? atoi(getenv("FAKE_CUDA_INIT")) : n_seen ? 0 : 100;
}
int cuDriverGetVersion(int *out) { return *out = number("FAKE_CUDA_VERSION", 12040), 0; }
int cuDeviceGetCount(int *out) { return *out = n_seen, 0; }
int cuDeviceGet(int *out, int index) { return *out = index, 0; }
int cuDeviceGetName(char *out, int size, int device) { return snprintf(out, size, "FAKE GPU %d", seen[device]), 0; }
int cuDeviceGetAttribute(int *out, int attribute, int device) { (void)device; return *out = attribute == 75 ? 9 : 0, 0; }
int cuDeviceGetUuid(unsigned char *out, int device) { return uuid_of(seen[device], 0, out), 0; }
int cuDeviceGetUuid_v2(unsigned char *out, int device) { return uuid_of(seen[device], getenv("FAKE_CUDA_MIG") != NULL, out), 0; }
int cuGetErrorString(int code, const char **out) {
    return *out = code == 803 ? "system has unsupported display driver / cuda driver combination" : "fake error", 0;
}
