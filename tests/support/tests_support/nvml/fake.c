/* libnvidia-ml.so.1 for machines without a GPU: says what the file "script" beside it says, read anew at each call.
 *
 * Lines of the script; K is a GPU's number for good, its index is its place among the lines. -1: any GPU, or none.
 *
 *   init CODE                                              what nvmlInit gives
 *   driver VERSION
 *   gpu K MINOR BYTES CORES MAJOR MINOR MIG PENDING LIMITS GPM ACCOUNTING UUID NAME
 *   profile K ENUM ID SLICES COUNT SMS MB START:SIZE,... NAME
 *   mig K INDEX GI CI SMS MB PROFILE START SIZE UUID NAME  a compute instance, with the GPU instance that it is in
 *   gi K GI PROFILE START SIZE                             a GPU instance without one
 *   process K PID BYTES GI
 *   event K TYPE DATUM GI                                  delivered once to each set that is there when it is appended
 *   fail FUNCTION K CODE                                   FUNCTION may be *
 *   hang FUNCTION K
 *   die FUNCTION K                                         a crash in the library
 *   stall FUNCTION K                                       does what it is asked for, then hangs (what cuts only)
 *   lie K BYTES                                            limits of memory read back as this, whatever they are
 *
 * What was cut since is in the file "cuts", which all processes with the library share; each call locks it:
 *
 *   +gi K GI PROFILE START SIZE, -gi K GI, +ci K GI CI INDEX SLICES, -ci K GI CI
 *
 * Limits of memory that were set are in the file "limits", in order: K SOFT HARD GROUP. A group that is not there has none.
 *
 * Structures and codes are those of nvml.h as the binding declares them (pynvml.py). Which symbols there are is decided
 * when it is linked: see library.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK, UNINITIALIZED, INVALID, NOT_SUPPORTED, NOT_FOUND = 6, TOO_SMALL, TIMEOUT = 10, LOST = 15, SYSTEM = 17,
       IN_USE = 19, NO_ROOM = 23 };
enum { GPUS = 16, PROFILES = 24, PLACES = 8, MIGS = 16, ROWS = 512, TEXT = 96 };
typedef unsigned int u32;
typedef unsigned long long u64;
typedef void *Device;

typedef struct { u32 start, size; } Place;
typedef struct { int k; u32 number, id, slices, count, sms, places; u64 mb; Place place[PLACES]; char name[TEXT]; } Profile;
typedef struct { int k; u32 id, profile; Place place; } Gi;
typedef struct { int k; u32 index, gi, ci, sms, slices; u64 mb; char uuid[TEXT], name[TEXT]; } Mig;
typedef struct { int k; u32 minor, cores, mig, pending, limits, gpm, accounting; int major_cc, minor_cc; u64 bytes;
                 char uuid[TEXT], name[TEXT]; } Gpu;
typedef struct { int k; u32 pid, gi; u64 bytes; } Process;
typedef struct { int k; u64 type, datum; u32 gi; } Event;
typedef struct { char function[TEXT]; int k, code, hangs, dies, stalls; } Fault;
typedef struct { int k; u64 bytes; } Lie;

static struct {
    int init, gpus, profiles, gis, migs, processes, events, faults, lies;
    char driver[TEXT];
    Gpu gpu[GPUS]; Profile profile[GPUS * PROFILES]; Gi gi[GPUS * MIGS]; Mig mig[GPUS * MIGS];
    Process process[ROWS]; Event event[ROWS]; Fault fault[ROWS]; Lie lie[GPUS];
} now;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int is_open, cuts = -1;
/* Their addresses are the handles. */
static char handles[GPUS], mig_handles[GPUS][MIGS], instances[GPUS][MIGS], computes[GPUS][MIGS][8];

static const char *beside(const char *name) {
    static char path[4096];
    Dl_info own;
    if (!dladdr((void *)beside, &own)) abort();
    const char *slash = strrchr(own.dli_fname, '/');
    snprintf(path, sizeof path, "%.*s/%s", slash ? (int)(slash - own.dli_fname) : 1, slash ? own.dli_fname : ".", name);
    return path;
}

static void read_places(Profile *p, const char *text) {
    for (int used = 0; p->places < PLACES; text += used) {
        Place *place = &p->place[p->places];
        if (sscanf(text, "%u:%u%n", &place->start, &place->size, &used) != 2) return;
        p->places++;
        if (text[used] == ',') used++;
    }
}

static Gi *find_gi(int k, u32 id) {
    for (int i = 0; i < now.gis; i++)
        if (now.gi[i].k == k && now.gi[i].id == id) return &now.gi[i];
    return NULL;
}

static Profile *find_profile(int k, u32 id) {
    for (int i = 0; i < now.profiles; i++)
        if (now.profile[i].k == k && now.profile[i].id == id) return &now.profile[i];
    return NULL;
}

static void add_gi(Gi gi) {
    if (!find_gi(gi.k, gi.id)) now.gi[now.gis++] = gi;
}

/* A compute instance in a GPU instance that is there: all of it, or a part, which has the name of a part. */
static void add_ci(int k, u32 gi, u32 ci, u32 index, u32 slices) {
    Gi *in = find_gi(k, gi);
    Profile *p = in ? find_profile(k, in->profile) : NULL;
    if (!p) return; /* the card was changed since */
    Mig m = {k, index, gi, ci, p->sms * slices / p->slices, slices, p->mb, "", ""};
    snprintf(m.uuid, sizeof m.uuid, "MIG-%08x-0000-0000-0000-%012x", (u32)k, gi + (ci << 8));
    for (int i = 0; i < now.gpus; i++)
        if (now.gpu[i].k != k) continue;
        else if (slices == p->slices) snprintf(m.name, sizeof m.name, "%.40s %.40s", now.gpu[i].name, p->name);
        else snprintf(m.name, sizeof m.name, "%.40s MIG %uc.%.32s", now.gpu[i].name, slices, p->name + strlen("MIG "));
    now.mig[now.migs++] = m;
}

static void read_cuts(void) {
    char line[256];
    FILE *file = fopen(beside("cuts"), "re");
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        Gi g;
        u32 ci, index, slices;
        if (sscanf(line, "+gi %d %u %u %u %u", &g.k, &g.id, &g.profile, &g.place.start, &g.place.size) == 5) add_gi(g);
        else if (sscanf(line, "+ci %d %u %u %u %u", &g.k, &g.id, &ci, &index, &slices) == 5)
            add_ci(g.k, g.id, ci, index, slices);
        else if (sscanf(line, "-gi %d %u", &g.k, &g.id) == 2) {
            Gi *gone = find_gi(g.k, g.id);
            if (gone) *gone = now.gi[--now.gis];
        } else if (sscanf(line, "-ci %d %u %u", &g.k, &g.id, &ci) == 3) {
            for (int i = 0; i < now.migs; i++) {
                Mig *m = &now.mig[i];
                if (m->k == g.k && m->gi == g.id && m->ci == ci) now.mig[i--] = now.mig[--now.migs];
            }
        } else abort();
    }
    fclose(file);
}

static void read_script(void) {
    char line[1024], places[256];
    memset(&now, 0, sizeof now);
    FILE *file = fopen(beside("script"), "re");
    if (!file) abort(); /* a fake without a script is a mistake in the test */
    while (fgets(line, sizeof line, file)) {
        Gpu *g = &now.gpu[now.gpus];
        Profile *p = &now.profile[now.profiles];
        Mig *m = &now.mig[now.migs];
        Gi gi;
        Process *r = &now.process[now.processes];
        Event *e = &now.event[now.events];
        Fault *f = &now.fault[now.faults];
        Lie *l = &now.lie[now.lies];
        if (sscanf(line, "init %d", &now.init) == 1 || sscanf(line, "driver %95s", now.driver) == 1) continue;
        if (sscanf(line, "gpu %d %u %llu %u %d %d %u %u %u %u %u %95s %95[^\n]", &g->k, &g->minor, &g->bytes, &g->cores,
                   &g->major_cc, &g->minor_cc, &g->mig, &g->pending, &g->limits, &g->gpm, &g->accounting, g->uuid,
                   g->name) == 13) now.gpus++;
        else if (sscanf(line, "profile %d %u %u %u %u %u %llu %255s %95[^\n]", &p->k, &p->number, &p->id, &p->slices,
                        &p->count, &p->sms, &p->mb, places, p->name) == 9) read_places(p, places), now.profiles++;
        else if (sscanf(line, "mig %d %u %u %u %u %llu %u %u %u %95s %95[^\n]", &m->k, &m->index, &m->gi, &m->ci, &m->sms,
                        &m->mb, &gi.profile, &gi.place.start, &gi.place.size, m->uuid, m->name) == 11)
            gi.k = m->k, gi.id = m->gi, add_gi(gi), now.migs++;
        else if (sscanf(line, "gi %d %u %u %u %u", &gi.k, &gi.id, &gi.profile, &gi.place.start, &gi.place.size) == 5)
            add_gi(gi);
        else if (sscanf(line, "process %d %u %llu %u", &r->k, &r->pid, &r->bytes, &r->gi) == 4) now.processes++;
        else if (sscanf(line, "event %d %llu %llu %u", &e->k, &e->type, &e->datum, &e->gi) == 4) now.events++;
        else if (sscanf(line, "fail %95s %d %d", f->function, &f->k, &f->code) == 3) now.faults++;
        else if (sscanf(line, "hang %95s %d", f->function, &f->k) == 2) f->hangs = 1, now.faults++;
        else if (sscanf(line, "die %95s %d", f->function, &f->k) == 2) f->dies = 1, now.faults++;
        else if (sscanf(line, "lie %d %llu", &l->k, &l->bytes) == 2) now.lies++;
        else if (sscanf(line, "stall %95s %d", f->function, &f->k) == 2) f->stalls = 1, now.faults++;
        else abort();
    }
    fclose(file);
    for (int i = 0; i < now.migs; i++) {
        Gi *in = find_gi(now.mig[i].k, now.mig[i].gi);
        Profile *p = in ? find_profile(in->k, in->profile) : NULL;
        now.mig[i].slices = p ? p->slices : 1;
    }
    read_cuts();
}

static void let_go(void) {
    if (cuts >= 0) close(cuts); /* and with it the lock */
    cuts = -1;
    pthread_mutex_unlock(&lock);
}

static _Noreturn void hang(void) {
    let_go();
    for (;;) pause();
}

/* Begin a call about GPU k (-1: none): with the lock held and the script read, unless the script says otherwise. */
static int enter(const char *function, int k) {
    pthread_mutex_lock(&lock);
    cuts = open(beside("cuts"), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644); /* where it cannot, nothing is cut */
    if (cuts >= 0) flock(cuts, LOCK_EX);
    read_script();
    int code = is_open || !strcmp(function, "nvmlInitWithFlags") ? OK : UNINITIALIZED;
    for (int i = 0; i < now.faults && code == OK; i++) {
        Fault *f = &now.fault[i];
        int about = !strcmp(f->function, function) || (!strcmp(f->function, "*") && k >= 0);
        if (!about || (f->k >= 0 && f->k != k)) continue;
        if (f->stalls) continue;
        if (f->hangs) hang();
        if (f->dies) raise(SIGSEGV);
        code = f->code;
    }
    if (code != OK) let_go();
    return code;
}

static int leave(int code) {
    let_go();
    return code;
}

/* Write down what was cut, with the lock held, and leave. */
static int leave_cut(const char *function, const char *line) {
    int k, is_written = cuts >= 0 && write(cuts, line, strlen(line)) == (ssize_t)strlen(line);
    if (sscanf(line + 3, "%d", &k) != 1) abort();
    for (int i = 0; i < now.faults; i++)
        if (now.fault[i].stalls && !strcmp(now.fault[i].function, function) && now.fault[i].k == k) hang();
    return leave(is_written ? OK : SYSTEM);
}

static int number_of(Device d) {
    char *h = d;
    if (h >= handles && h < handles + GPUS) return (int)(h - handles);
    if (h >= mig_handles[0] && h < mig_handles[0] + GPUS * MIGS) return (int)((h - mig_handles[0]) / MIGS);
    if (h >= instances[0] && h < instances[0] + GPUS * MIGS) return (int)((h - instances[0]) / MIGS);
    if (h >= computes[0][0] && h < computes[0][0] + GPUS * MIGS * 8) return (int)((h - computes[0][0]) / (MIGS * 8));
    return -1;
}

static Gpu *gpu_of(Device d) {
    for (int i = 0; i < now.gpus; i++)
        if (now.gpu[i].k == number_of(d)) return &now.gpu[i];
    return NULL;
}

static Mig *mig_of(Device d) {
    for (int i = 0; i < now.migs; i++)
        if ((char *)d == &mig_handles[now.mig[i].k][now.mig[i].index]) return &now.mig[i];
    return NULL;
}

/* By their handles; none for one that was destroyed. */
static Gi *gi_of(Device d) {
    for (int i = 0; i < now.gis; i++)
        if ((char *)d == &instances[now.gi[i].k][now.gi[i].id]) return &now.gi[i];
    return NULL;
}

static Mig *ci_of(Device d) {
    for (int i = 0; i < now.migs; i++)
        if ((char *)d == &computes[now.mig[i].k][now.mig[i].gi][now.mig[i].ci]) return &now.mig[i];
    return NULL;
}

static int is_busy(int k, u32 gi) {
    for (int i = 0; i < now.processes; i++)
        if (now.process[i].k == k && now.process[i].gi == gi) return 1;
    return 0;
}

#define ENTER(k) do { int code = enter(__func__, k); if (code != OK) return code; } while (0)
#define ENTER_GPU(d) ENTER(number_of(d)); Gpu *g = gpu_of(d); if (!g) return leave(LOST)

static int give(char *to, u32 room, const char *text) {
    if (strlen(text) >= room) return leave(TOO_SMALL);
    strcpy(to, text);
    return leave(OK);
}

int nvmlInitWithFlags(u32 flags) {
    (void)flags;
    ENTER(-1);
    is_open = now.init == OK;
    return leave(now.init);
}

int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "fake error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *to, u32 room) { ENTER(-1); return give(to, room, now.driver); }
int nvmlDeviceGetCount_v2(u32 *count) { ENTER(-1); *count = (u32)now.gpus; return leave(OK); }

int nvmlDeviceGetHandleByIndex_v2(u32 index, Device *d) {
    pthread_mutex_lock(&lock);
    read_script();
    int k = index < (u32)now.gpus ? now.gpu[index].k : -1;
    pthread_mutex_unlock(&lock);
    ENTER(k);
    if (k < 0) return leave(INVALID);
    *d = &handles[k];
    return leave(OK);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device *d) {
    pthread_mutex_lock(&lock);
    read_script();
    int k = -1;
    for (int i = 0; i < now.gpus; i++)
        if (!strcmp(now.gpu[i].uuid, uuid)) k = now.gpu[i].k;
    pthread_mutex_unlock(&lock);
    ENTER(k);
    if (k < 0) return leave(NOT_FOUND);
    *d = &handles[k];
    return leave(OK);
}

int nvmlDeviceGetUUID(Device d, char *to, u32 room) {
    ENTER_GPU(d);
    Mig *m = mig_of(d);
    return give(to, room, m ? m->uuid : g->uuid);
}

int nvmlDeviceGetName(Device d, char *to, u32 room) {
    ENTER_GPU(d);
    Mig *m = mig_of(d);
    return give(to, room, m ? m->name : g->name);
}

int nvmlDeviceGetMinorNumber(Device d, u32 *minor) { ENTER_GPU(d); *minor = g->minor; return leave(OK); }

typedef struct { char old[16]; u32 domain, bus, device, id, sub; char bus_id[32]; } Pci;

int nvmlDeviceGetPciInfo_v3(Device d, Pci *pci) {
    ENTER_GPU(d);
    memset(pci, 0, sizeof *pci);
    pci->bus = (u32)g->k;
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", (u32)g->k);
    return leave(OK);
}

int nvmlDeviceGetMemoryInfo(Device d, u64 *memory) {
    ENTER_GPU(d);
    memory[0] = memory[1] = g->bytes;
    memory[2] = 0;
    return leave(OK);
}

int nvmlDeviceGetNumGpuCores(Device d, u32 *cores) { ENTER_GPU(d); *cores = g->cores; return leave(OK); }

int nvmlDeviceGetCudaComputeCapability(Device d, int *major_cc, int *minor_cc) {
    ENTER_GPU(d);
    *major_cc = g->major_cc;
    *minor_cc = g->minor_cc;
    return leave(OK);
}

static int has_profiles(int k) {
    for (int i = 0; i < now.profiles; i++)
        if (now.profile[i].k == k) return 1;
    return 0;
}

int nvmlDeviceGetMigMode(Device d, u32 *current, u32 *pending) {
    ENTER_GPU(d);
    if (!has_profiles(g->k)) return leave(NOT_SUPPORTED);
    *current = g->mig;
    *pending = g->pending;
    return leave(OK);
}

typedef struct { u32 version, id, p2p, slices, count, sms, copy, decode, encode, jpeg, ofa; u64 mb; char name[TEXT]; } Info;
_Static_assert(sizeof(Info) == 0x98, "nvmlGpuInstanceProfileInfo_v2_t");

int nvmlDeviceGetGpuInstanceProfileInfoV(Device d, u32 number, Info *info) {
    ENTER_GPU(d);
    if (info->version != 0x02000098) return leave(25);
    for (int i = 0; i < now.profiles; i++) {
        Profile *p = &now.profile[i];
        if (p->k != g->k || p->number != number) continue;
        *info = (Info){info->version, p->id, 0, p->slices, p->count, p->sms, 0, 0, 0, 0, 0, p->mb, ""};
        strcpy(info->name, p->name);
        return leave(OK);
    }
    return leave(NOT_SUPPORTED);
}

int nvmlDeviceGetGpuInstancePossiblePlacements_v2(Device d, u32 id, Place *places, u32 *count) {
    ENTER_GPU(d);
    for (int i = 0; i < now.profiles; i++) {
        Profile *p = &now.profile[i];
        if (p->k != g->k || p->id != id) continue;
        if (places && *count < p->places) return leave(TOO_SMALL);
        if (places) memcpy(places, p->place, p->places * sizeof *places);
        *count = p->places;
        return leave(OK);
    }
    return leave(INVALID);
}

int nvmlDeviceGetMaxMigDeviceCount(Device d, u32 *count) { ENTER_GPU(d); *count = g->mig ? 7 : 0; return leave(OK); }

int nvmlDeviceGetMigDeviceHandleByIndex(Device d, u32 index, Device *to) {
    ENTER_GPU(d);
    for (int i = 0; i < now.migs; i++) {
        if (now.mig[i].k != g->k || now.mig[i].index != index) continue;
        *to = &mig_handles[g->k][index];
        return leave(OK);
    }
    return leave(NOT_FOUND);
}

typedef struct { u32 sms, other[7]; u64 mb; } Attributes;

int nvmlDeviceGetAttributes_v2(Device d, Attributes *attributes) {
    ENTER_GPU(d);
    (void)g;
    Mig *m = mig_of(d);
    if (!m) return leave(NOT_SUPPORTED); /* measured with MIG off */
    memset(attributes, 0, sizeof *attributes);
    attributes->sms = m->sms;
    attributes->mb = m->mb;
    return leave(OK);
}

int nvmlDeviceGetGpuInstanceId(Device d, u32 *id) {
    ENTER_GPU(d);
    (void)g;
    Mig *m = mig_of(d);
    if (!m) return leave(NOT_SUPPORTED);
    *id = m->gi;
    return leave(OK);
}

int nvmlDeviceGetComputeInstanceId(Device d, u32 *id) {
    ENTER_GPU(d);
    (void)g;
    Mig *m = mig_of(d);
    if (!m) return leave(NOT_SUPPORTED);
    *id = m->ci;
    return leave(OK);
}

int nvmlDeviceGetGpuInstanceById(Device d, u32 id, Device *to) {
    ENTER_GPU(d);
    if (!find_gi(g->k, id)) return leave(NOT_FOUND);
    *to = &instances[g->k][id];
    return leave(OK);
}

int nvmlDeviceGetGpuInstances(Device d, u32 profile, Device *to, u32 *count) {
    ENTER_GPU(d);
    *count = 0;
    if (!find_profile(g->k, profile)) return leave(INVALID);
    for (int i = 0; i < now.gis; i++)
        if (now.gi[i].k == g->k && now.gi[i].profile == profile) to[(*count)++] = &instances[g->k][now.gi[i].id];
    return leave(OK);
}

typedef struct { Device device; u32 id, profile; Place place; } InstanceInfo;

int nvmlGpuInstanceGetInfo(Device instance, InstanceInfo *info) {
    ENTER_GPU(instance);
    Gi *gi = gi_of(instance);
    if (!gi) return leave(NOT_FOUND);
    *info = (InstanceInfo){&handles[g->k], gi->id, gi->profile, gi->place};
    return leave(OK);
}

static int may_begin(const Profile *p, const Place *place) {
    for (u32 i = 0; i < p->places; i++)
        if (p->place[i].start == place->start && p->place[i].size == place->size) return 1;
    return 0;
}

int nvmlDeviceCreateGpuInstanceWithPlacement(Device d, u32 profile, const Place *place, Device *to) {
    ENTER_GPU(d);
    char line[96];
    u32 id = 1, same = 0;
    Profile *p = find_profile(g->k, profile);
    if (!g->mig) return leave(NOT_SUPPORTED);
    if (!p || !may_begin(p, place)) return leave(INVALID);
    for (int i = 0; i < now.gis; i++) {
        Gi *other = &now.gi[i];
        Profile *its = find_profile(g->k, other->profile);
        if (other->k != g->k) continue;
        if (other->place.start < place->start + place->size && place->start < other->place.start + other->place.size)
            return leave(NO_ROOM);
        if (its && strstr(its->name, "+me") && strstr(p->name, "+me")) return leave(NO_ROOM);
        same += other->profile == profile;
    }
    if (same >= p->count) return leave(NO_ROOM);
    while (find_gi(g->k, id)) id++;
    *to = &instances[g->k][id];
    snprintf(line, sizeof line, "+gi %d %u %u %u %u\n", g->k, id, profile, place->start, place->size);
    return leave_cut(__func__, line);
}

int nvmlGpuInstanceDestroy(Device instance) {
    ENTER_GPU(instance);
    char line[96];
    Gi *gi = gi_of(instance);
    if (!gi) return leave(NOT_FOUND);
    for (int i = 0; i < now.migs; i++)
        if (now.mig[i].k == g->k && now.mig[i].gi == gi->id) return leave(IN_USE);
    if (is_busy(g->k, gi->id)) return leave(IN_USE);
    snprintf(line, sizeof line, "-gi %d %u\n", g->k, gi->id);
    return leave_cut(__func__, line);
}

typedef struct { u32 version, id, slices, count, sms, copy, decode, encode, jpeg, ofa; char name[TEXT]; } ComputeInfo;
_Static_assert(sizeof(ComputeInfo) == 0x88, "nvmlComputeInstanceProfileInfo_v2_t");
static const u32 compute_slices[] = {1, 2, 3, 4, 7}; /* by NVML's enumeration, which is its id too */

int nvmlGpuInstanceGetComputeInstanceProfileInfoV(Device instance, u32 number, u32 engines, ComputeInfo *info) {
    ENTER_GPU(instance);
    Gi *gi = gi_of(instance);
    Profile *p = gi ? find_profile(g->k, gi->profile) : NULL;
    if (!p) return leave(NOT_FOUND);
    if (info->version != 0x02000088) return leave(25);
    if (engines || number >= 5 || compute_slices[number] > p->slices) return leave(NOT_SUPPORTED);
    u32 slices = compute_slices[number];
    u32 sms = p->sms * slices / p->slices;
    *info = (ComputeInfo){info->version, number, slices, p->slices / slices, sms, 0, 0, 0, 0, 0, ""};
    return leave(OK);
}

int nvmlGpuInstanceCreateComputeInstance(Device instance, u32 profile, Device *to) {
    ENTER_GPU(instance);
    char line[96];
    u32 ci = 0, index = 0, taken = 0;
    Gi *gi = gi_of(instance);
    Profile *p = gi ? find_profile(g->k, gi->profile) : NULL;
    if (!p) return leave(NOT_FOUND);
    if (profile >= 5) return leave(INVALID);
    for (int again = 1; again;) {
        again = 0;
        for (int i = 0; i < now.migs; i++) {
            if (now.mig[i].k != g->k) continue;
            if (now.mig[i].index == index) index++, again = 1;
            if (now.mig[i].gi == gi->id && now.mig[i].ci == ci) ci++, again = 1;
        }
    }
    for (int i = 0; i < now.migs; i++)
        if (now.mig[i].k == g->k && now.mig[i].gi == gi->id) taken += now.mig[i].slices;
    if (taken + compute_slices[profile] > p->slices) return leave(NO_ROOM);
    *to = &computes[g->k][gi->id][ci];
    snprintf(line, sizeof line, "+ci %d %u %u %u %u\n", g->k, gi->id, ci, index, compute_slices[profile]);
    return leave_cut(__func__, line);
}

int nvmlGpuInstanceGetComputeInstances(Device instance, u32 profile, Device *to, u32 *count) {
    ENTER_GPU(instance);
    Gi *gi = gi_of(instance);
    if (!gi || profile >= 5) return leave(gi ? INVALID : NOT_FOUND);
    *count = 0;
    for (int i = 0; i < now.migs; i++) {
        Mig *m = &now.mig[i];
        if (m->k == g->k && m->gi == gi->id && m->slices == compute_slices[profile])
            to[(*count)++] = &computes[g->k][m->gi][m->ci];
    }
    return leave(OK);
}

int nvmlComputeInstanceDestroy(Device compute) {
    ENTER_GPU(compute);
    char line[96];
    Mig *m = ci_of(compute);
    if (!m) return leave(NOT_FOUND);
    if (is_busy(g->k, m->gi)) return leave(IN_USE);
    snprintf(line, sizeof line, "-ci %d %u %u\n", g->k, m->gi, m->ci);
    return leave_cut(__func__, line);
}

typedef struct { u32 pid; u64 bytes; u32 gi, ci; } ProcessInfo;

int nvmlDeviceGetComputeRunningProcesses_v3(Device d, u32 *count, ProcessInfo *to) {
    ENTER_GPU(d);
    u32 found = 0;
    for (int i = 0; i < now.processes; i++) {
        Process *r = &now.process[i];
        if (r->k != g->k) continue;
        if (to && found < *count) to[found] = (ProcessInfo){r->pid, r->bytes, r->gi, r->gi};
        found++;
    }
    int code = found > *count ? TOO_SMALL : OK;
    *count = found;
    return leave(code);
}

typedef struct { const char *space; u64 soft, hard, used; } MemoryLimits;
typedef struct { const char *space; u64 soft, hard; } NewLimits;

/* Whether limits can be had of a group: its folder is there. */
static int check_group(const Gpu *g, const char *space) {
    struct stat found;
    if (!g->limits || g->mig) return NOT_SUPPORTED;
    if (!space || space[0] != '/') return INVALID;
    return stat(space, &found) || !S_ISDIR(found.st_mode) ? NOT_FOUND : OK;
}

int nvmlDeviceGetMemoryLimits_v1(Device d, MemoryLimits *limits) {
    ENTER_GPU(d);
    char line[4352], group[4096];
    int k, code = check_group(g, limits->space);
    u64 soft, hard;
    if (code != OK) return leave(code);
    limits->soft = 0;
    limits->hard = ~0ULL;
    limits->used = 0;
    FILE *file = fopen(beside("limits"), "re");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "%d %llu %llu %4095s", &k, &soft, &hard, group) == 4 && k == g->k && !strcmp(group, limits->space))
            limits->soft = soft, limits->hard = hard;
    if (file) fclose(file);
    for (int i = 0; i < now.lies; i++)
        if (now.lie[i].k == g->k) limits->soft = limits->hard = now.lie[i].bytes;
    return leave(OK);
}

int nvmlDeviceSetMemoryLimits_v1(Device d, const NewLimits *limits) {
    ENTER_GPU(d);
    int code = check_group(g, limits->space);
    if (code != OK) return leave(code);
    if (limits->soft > limits->hard || (limits->hard > g->bytes && limits->hard != ~0ULL)) return leave(INVALID);
    FILE *file = fopen(beside("limits"), "ae");
    if (!file) return leave(SYSTEM);
    fprintf(file, "%d %llu %llu %s\n", g->k, limits->soft, limits->hard, limits->space);
    fclose(file);
    return leave(OK);
}

int nvmlGpmQueryDeviceSupport(Device d, u32 *support) {
    ENTER_GPU(d);
    support[1] = g->gpm;
    return leave(OK);
}

int nvmlDeviceGetAccountingMode(Device d, u32 *mode) { ENTER_GPU(d); *mode = g->accounting; return leave(OK); }
int nvmlDeviceGetSupportedEventTypes(Device d, u64 *types) { ENTER_GPU(d); (void)g; *types = 65439; return leave(OK); }

typedef struct { u64 wanted[GPUS]; int cursor; } Set;
typedef struct { Device device; u64 type, datum; u32 gi, ci; } EventData;

int nvmlEventSetCreate(Set **set) {
    ENTER(-1);
    *set = calloc(1, sizeof **set);
    (*set)->cursor = now.events;
    return leave(OK);
}

int nvmlDeviceRegisterEvents(Device d, u64 types, Set *set) {
    ENTER_GPU(d);
    set->wanted[g->k] = types;
    return leave(OK);
}

int nvmlEventSetWait_v2(Set *set, EventData *data, u32 timeout_ms) {
    for (u32 waited = 0;; waited += 5) {
        ENTER(-1);
        while (set->cursor < now.events) {
            Event *e = &now.event[set->cursor++];
            if (!(set->wanted[e->k] & e->type)) continue;
            *data = (EventData){&handles[e->k], e->type, e->datum, e->gi, e->gi};
            return leave(OK);
        }
        leave(OK);
        if (waited >= timeout_ms) return TIMEOUT;
        nanosleep(&(struct timespec){0, 5000000}, NULL);
    }
}

int nvmlEventSetFree(Set *set) { free(set); return OK; }
