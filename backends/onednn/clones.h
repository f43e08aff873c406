// SPDX-License-Identifier: Apache-2.0
// For functions with the loops that count: the library is built for any x86-64, and the widest version that the machine
// has is chosen at load. Levels, not the names of processors: those are looked for by name, and no other maker's has
// them.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define ATTEST_ONEDNN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ATTEST_ONEDNN_CLONES
#endif
