// SPDX-License-Identifier: Apache-2.0
// CUDA's execution model on one CPU thread: the threads of a block are fibers that take turns where they wait for each
// other. Blocks run one after the other, in shared memory of exactly the size that the launch asked for, so that
// the address sanitizer sees every access beyond it.
//
// A barrier that not all threads of the block reach, or a warp instruction that not all its lanes execute, ends the
// process with a message: on a GPU it would hang or be undefined.
#pragma once

#include <attest/backend_math.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

namespace attest::cuda::emulator {

inline constexpr int warp = 32, warpgroup = 128;

/// Which thread of which block is running.
struct Place {
  int x = 0, y = 0, z = 0, width = 1, thread = 0;
};

struct Grid {
  int x, y, z;
};

/// In which order the threads of a block get their turns; a result that depends on it is a race.
enum class Order { forward, backward };

/// Runs `kernel(shared)` in every thread of every block.
void launch(Grid grid, int threads, std::size_t shared_bytes, Order order,
            const std::function<void(std::byte* shared)>& kernel);

/// Ends the process with a message.
[[noreturn]] void fail(const char* what);

// For code that runs in a launch.

const Place& current();
void barrier();
/// Calls `work` once all 32 lanes of the warp are here, with what each of them brought.
void collective(void* mine, void (*work)(void* const* lanes));

/// 16 bytes, null: zeros. They arrive at the wait that ends them, but what they overwrite is gone at once: a GPU says
/// of neither when. Until then `to` holds ones: NaNs, and -1 in int8.
void copy_later(void* to, const void* from);
void copy_commit();
void copy_wait(int pending);

void load_matrices(std::uint32_t (&to)[4], const void* row, bool transposed);
void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1, abi::Storage storage);

/// As a GPU counts it: from the beginning of the block's shared memory.
std::uint32_t shared_address(const void* shared);
/// What the thread's copies have brought since the last time may be a factor of products, after a barrier.
void publish_to_products();

// wgmma.m64n64k16 and m64n128k16. A product is done at the wait that covers its group; until then its sums are NaN, and
// if by then one of its factors, in registers or in shared memory, has changed, the process ends. So it does where the
// warps of a warpgroup reach one of these at different places: all of them have to execute the same instruction.

using Where = std::source_location;
void warpgroup_fence(Where where);
void warpgroup_commit(Where where);
/// For all groups but the last `pending`.
void warpgroup_wait(int pending, Where where);
/// `d`: `columns` / 2 sums of each thread. `add` false: what is in them does not count. `a_fragments` null: both
/// factors are in shared memory, row by row. Else `b` lies there with its rows along k.
void multiply_add_64(float* d, int columns, bool add, const std::uint32_t* a_fragments, std::uint64_t a,
                     std::uint64_t b, abi::Storage storage, Where where);

}  // namespace attest::cuda::emulator
