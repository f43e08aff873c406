// SPDX-License-Identifier: Apache-2.0
#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "fiber.h"

namespace attest::cuda::emulator {

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_host: %s\n", what);
  std::abort();
}

enum class Wait : std::uint8_t { none, barrier, warp, ended };

struct Copy {
  void* to;
  const void* from;  ///< Null: zeros.
};

struct Thread {
  Fiber fiber;
  Wait wait = Wait::none;
  std::vector<std::vector<Copy>> groups;  ///< Ended and not yet waited for, oldest first.
  std::vector<Copy> copies;               ///< Of the group that is still open.
};

struct Warp {
  int arrived = 0;
  void (*work)(void* const* lanes) = nullptr;
  void* lanes[warp] = {};
};

void copy(const std::vector<Copy>& copies) {
  for (const Copy& each : copies) {
    if (each.from != nullptr) {
      std::memcpy(each.to, each.from, 16);
    } else {
      std::memset(each.to, 0, 16);
    }
  }
}

/// The block that runs on this CPU thread, with its threads.
class Block {
 public:
  void run(Grid grid, int threads, std::size_t shared_bytes, Order order,
           const std::function<void(std::byte* shared)>& kernel) {
    if (threads % warp != 0) fail("a block of threads that do not fill their warps");
    while (threads_.size() < static_cast<std::size_t>(threads)) threads_.emplace_back();
    count_ = threads;
    step_ = order == Order::forward ? 1 : threads - 1;
    kernel_ = &kernel;
    for (int z = 0; z < grid.z; ++z) {
      for (int y = 0; y < grid.y; ++y) {
        for (int x = 0; x < grid.x; ++x) run_block({x, y, z, grid.x, 0}, shared_bytes);
      }
    }
  }

  Place place;

  void wait_at_barrier() {
    ++at_barrier_;
    if (at_barrier_ == count_) {
      at_barrier_ = 0;
      for (int t = 0; t < count_; ++t) thread(t).wait = Wait::none;
    } else {
      pause(Wait::barrier);
    }
  }

  void wait_for_warp(void* mine, void (*work)(void* const* lanes)) {
    const int first = place.thread / warp * warp;
    Warp& own = warps_[static_cast<std::size_t>(place.thread / warp)];
    if (own.arrived == 0) own.work = work;
    if (own.work != work) fail("lanes of one warp execute different warp instructions");
    own.lanes[place.thread - first] = mine;
    if (++own.arrived == warp) {
      own.arrived = 0;
      work(own.lanes);
      for (int l = 0; l < warp; ++l) thread(first + l).wait = Wait::none;
    } else {
      pause(Wait::warp);
    }
  }

  Thread& running() { return thread(place.thread); }

 private:
  Thread& thread(int t) { return threads_[static_cast<std::size_t>(t)]; }

  void run_block(const Place& where, std::size_t shared_bytes) {
    // Of exactly this size, and full of NaNs.
    shared_.reset(static_cast<std::byte*>(::operator new[](shared_bytes, std::align_val_t{128})));
    std::memset(shared_.get(), 0xFF, shared_bytes);
    warps_.assign(static_cast<std::size_t>(count_ / warp), Warp{});
    at_barrier_ = 0;
    ended_ = 0;
    place = where;
    for (int t = 0; t < count_; ++t) {
      thread(t).wait = Wait::none;
      thread(t).groups.clear();
      thread(t).copies.clear();
      thread(t).fiber.start(&Block::enter);
    }
    place.thread = step_ == 1 ? 0 : count_ - 1;
    outside_.switch_to(running().fiber);
  }

  static void enter();

  void play() {
    (*kernel_)(shared_.get());
    if (!running().copies.empty() || !running().groups.empty()) fail("a thread ended before its copies had arrived");
    ++ended_;
    if (ended_ == count_) {
      running().wait = Wait::ended;
      running().fiber.switch_to(outside_, true);
    }
    pause(Wait::ended);
  }

  /// Lets the next thread go on that can.
  void pause(Wait why) {
    Thread& from = running();
    from.wait = why;
    for (int tried = 1; tried < count_; ++tried) {
      const int next = (place.thread + tried * step_) % count_;
      if (thread(next).wait != Wait::none) continue;
      const int mine = place.thread;
      place.thread = next;
      from.fiber.switch_to(thread(next).fiber, why == Wait::ended);
      place.thread = mine;
      return;
    }
    fail("threads wait for others that never come: a barrier or warp instruction that not all of them execute");
  }

  struct Free {
    void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{128}); }
  };

  std::deque<Thread> threads_;
  std::vector<Warp> warps_;
  std::unique_ptr<std::byte[], Free> shared_;
  Fiber outside_;
  const std::function<void(std::byte* shared)>* kernel_ = nullptr;
  int count_ = 0, step_ = 1, at_barrier_ = 0, ended_ = 0;
};

Block& block() {
  thread_local Block own;
  return own;
}

void Block::enter() {
  Fiber::arrived();
  block().play();
  fail("an ended thread went on");
}

}  // namespace

void launch(Grid grid, int threads, std::size_t shared_bytes, Order order,
            const std::function<void(std::byte* shared)>& kernel) {
  block().run(grid, threads, shared_bytes, order, kernel);
}

const Place& current() {
  return block().place;
}

void barrier() {
  block().wait_at_barrier();
}

void collective(void* mine, void (*work)(void* const* lanes)) {
  block().wait_for_warp(mine, work);
}

void copy_later(void* to, const void* from) {
  if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    fail("a copy of 16 bytes that is not aligned to them");
  }
  block().running().copies.push_back({to, from});
}

void copy_commit() {
  Thread& own = block().running();
  own.groups.push_back(std::move(own.copies));
  own.copies.clear();
}

void copy_wait(int pending) {
  auto& groups = block().running().groups;
  while (groups.size() > static_cast<std::size_t>(pending)) {
    copy(groups.front());
    groups.erase(groups.begin());
  }
}

// The fragments of PTX's ldmatrix and mma.m16n8k16: lane l is in group g = l / 4 and is number t = l % 4 there.
//   A (16 x 16): registers hold the pairs (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) of (row, first column)
//   B (16 x 8):  (first row, column): (2t, g), (2t + 8, g)
//   C (16 x 8):  the numbers (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)

void load_matrices(std::uint32_t (&to)[4], const void* row, bool transposed) {
  struct Lane {
    const std::uint16_t* row;
    std::uint32_t* to;
    bool transposed;
  } lane{static_cast<const std::uint16_t*>(row), to, transposed};
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("ldmatrix: a row that is not aligned to 16 bytes");
  collective(&lane, [](void* const* lanes) {
    const auto row_of = [&](int matrix, int r) { return static_cast<Lane*>(lanes[matrix * 8 + r])->row; };
    for (int l = 0; l < warp; ++l) {
      const auto& own = *static_cast<Lane*>(lanes[l]);
      const int g = l / 4, t = l % 4;
      for (int matrix = 0; matrix < 4; ++matrix) {
        const std::uint32_t low = own.transposed ? row_of(matrix, 2 * t)[g] : row_of(matrix, g)[2 * t];
        const std::uint32_t high = own.transposed ? row_of(matrix, 2 * t + 1)[g] : row_of(matrix, g)[2 * t + 1];
        own.to[matrix] = low | high << 16;
      }
    }
  });
}

void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                  abi::Storage storage) {
  struct Lane {
    float* c;
    const std::uint32_t* a;
    std::uint32_t b[2];
    abi::Storage storage;
  } lane{c, a, {b0, b1}, storage};
  collective(&lane, [](void* const* lanes) {
    float left[16][16], right[8][16];
    const bool half = static_cast<Lane*>(lanes[0])->storage == abi::Storage::f16;
    const auto number = [half](std::uint32_t pair, int which) {
      const std::uint32_t code = which == 0 ? pair & 0xFFFFu : pair >> 16;
      return half ? abi::F16::decode(code) : abi::Bf16::decode(code);
    };
    for (int l = 0; l < warp; ++l) {
      const auto& own = *static_cast<Lane*>(lanes[l]);
      const int g = l / 4, t = l % 4;
      for (int which = 0; which < 2; ++which) {
        left[g][2 * t + which] = number(own.a[0], which);
        left[g + 8][2 * t + which] = number(own.a[1], which);
        left[g][2 * t + 8 + which] = number(own.a[2], which);
        left[g + 8][2 * t + 8 + which] = number(own.a[3], which);
        right[g][2 * t + which] = number(own.b[0], which);
        right[g][2 * t + 8 + which] = number(own.b[1], which);
      }
    }
    for (int l = 0; l < warp; ++l) {
      float* const to = static_cast<Lane*>(lanes[l])->c;
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + i / 2 * 8, column = 2 * (l % 4) + i % 2;
        float sum = to[i];
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[column][k];
        to[i] = sum;
      }
    }
  });
}

}  // namespace attest::cuda::emulator
