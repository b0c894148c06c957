/* Blocks of tensors that leave a hole of their own size when they are freed.

   glibc's posix_memalign asks its heap for more than it was asked for, and gives what is before and behind the block back in pieces of a few
   dozen bytes. Small blocks settle there, and once the large one is freed its hole is a little too small for the next one of that size
   (glibc bugs 14581 and 30723): the heap grows beside its holes. Here a block is one piece of malloc's, with what to free ahead of it.

   Torch asks for the memory of tensors in libc10 alone, whose two calls are turned to those here in its table of imports. */

#if defined(__linux__)
#define _GNU_SOURCE
#include <features.h>
#endif

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALIGNMENT 64 /* of torch's tensors */
#define LEAST 4096   /* bytes of a block that is worth it */

#if defined(__x86_64__)
#define IS_IMPORT(type) ((type) == R_X86_64_JUMP_SLOT || (type) == R_X86_64_GLOB_DAT)
#else
#define IS_IMPORT(type) ((type) == R_AARCH64_JUMP_SLOT || (type) == R_AARCH64_GLOB_DAT)
#endif

typedef struct {
    void *whole;        /* what malloc gave */
    uintptr_t signature; /* of the block's address; nobody who does not know the secret can write one */
} Header;

static uintptr_t secret;

static int allocate(void **block, size_t alignment, size_t size) {
    if (alignment != ALIGNMENT || size < LEAST || size > SIZE_MAX - sizeof(Header) - ALIGNMENT) return posix_memalign(block, alignment, size);
    char *whole = malloc(size + sizeof(Header) + ALIGNMENT - 1);
    if (!whole) return ENOMEM;
    const uintptr_t at = ((uintptr_t)whole + sizeof(Header) + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1);
    ((Header *)at)[-1] = (Header){whole, at ^ secret};
    *block = (void *)at;
    return 0;
}

/* Also what was not allocated here: ahead of any other block of glibc's stands its size, which is no signature. */
static void release(void *block) {
    Header *header = (Header *)block - 1;
    if (block && (uintptr_t)block % ALIGNMENT == 0 && header->signature == ((uintptr_t)block ^ secret)) {
        header->signature = 0;
        block = header->whole;
    }
    free(block);
}

typedef struct {
    uintptr_t *allocates[4], *releases[4];
    int allocating, releasing;
    uintptr_t constant, after_constant; /* addresses that are read-only once the library is loaded */
} Imports;

static void look(Imports *found, const ElfW(Rela) *relocation, size_t bytes, uintptr_t base, const ElfW(Sym) *symbols, const char *names) {
    for (size_t i = 0; relocation && i < bytes / sizeof *relocation; i++) {
        const char *name = names + symbols[ELF64_R_SYM(relocation[i].r_info)].st_name;
        uintptr_t *slot = (uintptr_t *)(base + relocation[i].r_offset);
        if (!IS_IMPORT(ELF64_R_TYPE(relocation[i].r_info))) continue;
        if (!strcmp(name, "posix_memalign") && found->allocating < 4) found->allocates[found->allocating++] = slot;
        if (!strcmp(name, "free") && found->releasing < 4) found->releases[found->releasing++] = slot;
    }
}

static int of_libc10(struct dl_phdr_info *library, size_t size, void *found) {
    (void)size;
    const char *name = strrchr(library->dlpi_name, '/');
    if (strcmp(name ? name + 1 : library->dlpi_name, "libc10.so")) return 0;
    uintptr_t at[DT_JMPREL + 1] = {0}; /* the highest of those that are looked at */
    for (int i = 0; i < library->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &library->dlpi_phdr[i];
        const uintptr_t start = library->dlpi_addr + part->p_vaddr;
        if (part->p_type == PT_GNU_RELRO) {
            ((Imports *)found)->constant = start;
            ((Imports *)found)->after_constant = start + part->p_memsz;
        }
        if (part->p_type == PT_DYNAMIC)
            for (const ElfW(Dyn) *each = (const ElfW(Dyn) *)start; each->d_tag; each++)
                if (each->d_tag > 0 && each->d_tag <= DT_JMPREL) at[each->d_tag] = each->d_un.d_ptr;
    }
    const ElfW(Sym) *symbols = (const ElfW(Sym) *)at[DT_SYMTAB];
    const char *names = (const char *)at[DT_STRTAB];
    if (!symbols || !names || at[DT_PLTREL] != DT_RELA) return 1;
    look(found, (const ElfW(Rela) *)at[DT_JMPREL], at[DT_PLTRELSZ], library->dlpi_addr, symbols, names);
    look(found, (const ElfW(Rela) *)at[DT_RELA], at[DT_RELASZ], library->dlpi_addr, symbols, names);
    return 1;
}

static int turn(const Imports *found, uintptr_t *const *slots, int count, uintptr_t function) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < count; i++) {
        const uintptr_t slot = (uintptr_t)slots[i];
        void *start = (void *)(slot & ~(page - 1));
        if (mprotect(start, page, PROT_READ | PROT_WRITE)) return 0;
        __atomic_store_n(slots[i], function, __ATOMIC_RELEASE);
        if (found->constant <= slot && slot < found->after_constant) mprotect(start, page, PROT_READ);
    }
    return count > 0;
}

/* Whether the heap is glibc's: ahead of others' blocks there may be no memory to read. */
static int is_of_glibc(const char *function) {
    void *library = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    const int is = library && dlsym(library, function) == dlsym(RTLD_DEFAULT, function);
    if (library) dlclose(library);
    return is;
}

/* Let torch allocate so from now on; whether it does. */
int64_t memfit_whole_blocks(void) {
    static int done;
    if (done) return 1;
    Imports found = {0};
    const char *random = (const char *)getauxval(AT_RANDOM);
    if (!random || !is_of_glibc("malloc") || !is_of_glibc("free") || !is_of_glibc("posix_memalign")) return 0;
    memcpy(&secret, random, sizeof secret);
    dl_iterate_phdr(of_libc10, &found);
    /* Freeing first: whatever is allocated here must be freed here. */
    done = found.allocating && turn(&found, found.releases, found.releasing, (uintptr_t)release) &&
           turn(&found, found.allocates, found.allocating, (uintptr_t)allocate);
    return done;
}

#else

#include <stdint.h>

int64_t memfit_whole_blocks(void) { return 0; }

#endif
