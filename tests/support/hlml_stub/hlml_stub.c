/* A libhlml.so for tests: the calls jouled makes through pyhlml 1.9.0.580, steered by small files.
 *
 * $HLML_STUB_DIR holds the files, all optional, one decimal number each. Files of card N:
 *   cardN.milliwatts   power now (default 300000 + 100000 N)
 *   cardN.millijoules  energy (default 1000000 + N)
 *   cardN.bus          PCI bus (default 0x40 - N: not in order)
 *   cardN.CALL.code    return code of CALL: handle, name, uuid, pci, power, energy, limit, or `all`
 * Files of the library: count (default 2), init.code, all.code.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, MAX_CARDS = 16 };
static int cards[MAX_CARDS], initialised;

static int control(char *text, size_t size, const char *format, ...) {
    const char *directory = getenv("HLML_STUB_DIR");
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

static unsigned long long number(int card, const char *key, unsigned long long otherwise) {
    char text[64];
    return control(text, sizeof text, "card%d.%s", card, key) ? strtoull(text, NULL, 10) : otherwise;
}

static int library_code(void) {
    char text[64];
    if (!initialised) return UNINITIALIZED;
    return control(text, sizeof text, "all.code") ? atoi(text) : SUCCESS;
}

static int code(const int *card, const char *call) {
    char text[64];
    if (library_code()) return library_code();
    if (control(text, sizeof text, "card%d.all.code", *card)) return atoi(text);
    return control(text, sizeof text, "card%d.%s.code", *card, call) ? atoi(text) : SUCCESS;
}

int hlml_init(void) {
    char text[64];
    if (control(text, sizeof text, "init.code") && atoi(text)) return atoi(text);
    for (int card = 0; card < MAX_CARDS; card++) cards[card] = card;
    initialised = 1;
    return SUCCESS;
}

int hlml_shutdown(void) {
    int was = initialised;
    initialised = 0;
    return was ? SUCCESS : UNINITIALIZED;
}

int hlml_device_get_count(unsigned *count) {
    char text[64];
    *count = control(text, sizeof text, "count") ? (unsigned)atoi(text) : 2;
    return library_code();
}

int hlml_device_get_handle_by_index(unsigned index, void **card) {
    if (index >= MAX_CARDS) return INVALID_ARGUMENT;
    *card = &cards[index];
    return code(&cards[index], "handle");
}

int hlml_device_get_name(int *card, char *text, unsigned size) {
    snprintf(text, size, "HL-325L %d", *card);
    return code(card, "name");
}

int hlml_device_get_uuid(int *card, char *text, unsigned size) {
    snprintf(text, size, "01P0-HL3090A0-18-U4V193-22-07-%02d", *card);
    return code(card, "uuid");
}

typedef struct {
    unsigned bus;
    char bus_id[15];
    unsigned device, domain, pci_device_id;
    char caps[20];
} Pci;

int hlml_device_get_pci_info(int *card, Pci *info) {
    memset(info, 0, sizeof *info);
    snprintf(info->bus_id, sizeof info->bus_id, "0000:%02x:00.0", (unsigned)number(*card, "bus", 0x40 - (unsigned)*card) & 0xff);
    return code(card, "pci");
}

int hlml_device_get_power_usage(int *card, unsigned *milliwatts) {
    *milliwatts = (unsigned)number(*card, "milliwatts", 300000 + 100000 * (unsigned)*card);
    return code(card, "power");
}

int hlml_device_get_total_energy_consumption(int *card, unsigned long long *millijoules) {
    *millijoules = number(*card, "millijoules", 1000000 + (unsigned)*card);
    return code(card, "energy");
}

int hlml_device_get_power_management_default_limit(int *card, unsigned *milliwatts) {
    *milliwatts = 900000;
    return code(card, "limit");
}

int hlml_get_driver_version(char *text, unsigned size) {
    snprintf(text, size, "1.22.0-stub");
    return library_code();
}
