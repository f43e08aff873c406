// SPDX-License-Identifier: Apache-2.0
#include "emulator.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "fiber.h"

namespace attest::cuda::emulator {

void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_host: %s\n", what);
  std::abort();
}

namespace {

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
  bool unpublished = false;               ///< Copies have arrived that products may not see yet.
};

/// Lanes of a warp or a warpgroup that meet for an instruction.
struct Meeting {
  int arrived = 0;
  void (*work)(void* const* lanes) = nullptr;
  Where where;  ///< In the kernel, if that counts.
  void* lanes[warpgroup] = {};
};

using Factor = std::vector<std::array<float, 16>>;  ///< Rows of the left one, columns of the right one.

/// A product in the background: factors as they were when it began.
struct Product {
  std::array<float*, warpgroup> sums;
  std::array<const std::uint32_t*, warpgroup> fragments;  ///< Null: the left factor is in shared memory.
  Factor left, right;
  std::uint64_t a, b;
  std::size_t columns;
  bool add;  ///< Else what was in the sums does not count.
  abi::Storage storage;
};

/// Sums of a warpgroup that products are at work on; the threads see NaNs meanwhile.
struct Held {
  std::array<float*, warpgroup> sums;
  std::array<std::vector<float>, warpgroup> values;
};

struct Warpgroup {
  Meeting meeting;
  bool fenced = false;
  std::vector<Product> products;
  std::vector<std::size_t> groups;  ///< That are committed: each ends with this many products.
  std::vector<Held> held;
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
    meet(warps_[static_cast<std::size_t>(place.thread / warp)], warp, {}, mine, work);
  }
  void wait_for_warpgroup(Where where, void* mine, void (*work)(void* const* lanes)) {
    if (count_ % warpgroup != 0) fail("a product of a warpgroup in a block of threads that do not fill theirs");
    meet(own_warpgroup().meeting, warpgroup, where, mine, work);
  }

  Thread& running() { return thread(place.thread); }
  Warpgroup& own_warpgroup() { return warpgroups_[static_cast<std::size_t>(place.thread / warpgroup)]; }
  [[nodiscard]] const std::byte* shared() const { return shared_.get(); }
  [[nodiscard]] std::size_t shared_bytes() const { return shared_bytes_; }
  [[nodiscard]] bool unpublished() {
    return std::any_of(threads_.begin(), threads_.begin() + count_, [](const Thread& t) { return t.unpublished; });
  }

 private:
  void meet(Meeting& own, int lanes, Where where, void* mine, void (*work)(void* const* lanes)) {
    const int first = place.thread / lanes * lanes;
    if (own.arrived == 0) own.work = work, own.where = where;
    if (own.work != work) fail("lanes of one warp execute different warp instructions");
    if (own.where.line() != where.line() || own.where.column() != where.column()) {
      fail("warps of one warpgroup execute an instruction of all of them at different places");
    }
    own.lanes[place.thread - first] = mine;
    if (++own.arrived == lanes) {
      own.arrived = 0;
      work(own.lanes);
      for (int l = 0; l < lanes; ++l) thread(first + l).wait = Wait::none;
    } else {
      pause(Wait::warp);
    }
  }

  Thread& thread(int t) { return threads_[static_cast<std::size_t>(t)]; }

  void run_block(const Place& where, std::size_t shared_bytes) {
    // Of exactly this size, and full of NaNs.
    shared_.reset(static_cast<std::byte*>(::operator new[](shared_bytes, std::align_val_t{1024})));
    shared_bytes_ = shared_bytes;
    std::memset(shared_.get(), 0xFF, shared_bytes);
    warps_.assign(static_cast<std::size_t>(count_ / warp), Meeting{});
    warpgroups_.assign(static_cast<std::size_t>(count_ / warpgroup), Warpgroup{});
    at_barrier_ = 0;
    ended_ = 0;
    place = where;
    for (int t = 0; t < count_; ++t) {
      thread(t).wait = Wait::none;
      thread(t).groups.clear();
      thread(t).copies.clear();
      thread(t).unpublished = false;
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
      for (const Warpgroup& each : warpgroups_) {
        if (!each.products.empty()) fail("a block ended before its products were done");
      }
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
    void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{1024}); }
  };

  std::deque<Thread> threads_;
  std::vector<Meeting> warps_;
  std::vector<Warpgroup> warpgroups_;
  std::unique_ptr<std::byte[], Free> shared_;
  std::size_t shared_bytes_ = 0;
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
  std::memset(to, 0xFF, 16);
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
    if (!groups.front().empty()) block().running().unpublished = true;
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

// ---------------------------------------------------------------------------------------------------------------------
// Products of a warpgroup, by the PTX ISA's chapter on wgmma: fragments of the sums and of the left factor, matrix
// descriptors with the 128-byte swizzle, K-major and MN-major layouts.

namespace {

float number_of(std::uint32_t code, abi::Storage storage) {
  return storage == abi::Storage::f16 ? abi::F16::decode(code) : abi::Bf16::decode(code);
}

/// Lines of 16 numbers along k. Along k: element k of line n is number k of row n. Else it is number n of row k, and
/// every 64 numbers the leading dimension's offset leads to the next ones.
Factor shared_factor(std::uint64_t descriptor, std::size_t lines, bool along_k, abi::Storage storage) {
  const auto offset = [&](int bit) { return (descriptor >> bit & 0x3FFF) << 4; };
  const std::uint64_t start = offset(0), leading = offset(16), group = offset(32);
  if (descriptor >> 62 != 1) fail("a matrix descriptor without the 128-byte swizzle");
  if ((descriptor >> 49 & 7) != 0) fail("a matrix descriptor with a base offset");
  if (group % 1024 != 0) fail("a matrix descriptor whose groups of rows are no swizzle's");
  Factor factor(lines);
  for (std::uint64_t n = 0; n < lines; ++n) {
    if (!along_k && n == 64 && leading % 1024 != 0) fail("a matrix descriptor whose columns are no swizzle's");
    for (std::uint64_t k = 0; k < 16; ++k) {
      const std::uint64_t row = along_k ? n : k, number = along_k ? k : n;
      const std::uint64_t plain = start + number / 64 * leading + row / 8 * group + row % 8 * 128 + number % 64 * 2;
      const std::uint64_t at = plain ^ (plain >> 7 & 7) << 4;
      if (at + 2 > block().shared_bytes()) fail("a matrix descriptor that leads beyond the shared memory");
      std::uint16_t code;
      std::memcpy(&code, block().shared() + at, sizeof code);
      factor[n][k] = number_of(code, storage);
    }
  }
  return factor;
}

/// The left factor of a product.
Factor left_factor(const Product& p) {
  if (p.fragments[0] == nullptr) return shared_factor(p.a, 64, true, p.storage);
  Factor factor(64);
  for (std::size_t t = 0; t < warpgroup; ++t) {
    const std::size_t row = t / 32 * 16 + t % 32 / 4, k = t % 4 * 2;
    for (std::size_t i = 0; i < 4; ++i) {
      for (std::size_t half = 0; half < 2; ++half) {
        factor[row + i % 2 * 8][k + i / 2 * 8 + half] = number_of(p.fragments[t][i] >> 16 * half & 0xFFFFU, p.storage);
      }
    }
  }
  return factor;
}
Factor right_factor(const Product& p) {
  return shared_factor(p.b, p.columns, p.fragments[0] == nullptr, p.storage);
}

/// Bit by bit, for NaNs are no reason.
bool same(const Factor& a, const Factor& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
}

void finish(Product& p, Held& held) {
  if (!same(p.left, left_factor(p))) fail("a product's left factor has changed");
  if (!same(p.right, right_factor(p))) fail("a product's right factor has changed");
  for (std::size_t t = 0; t < warpgroup; ++t) {
    for (std::size_t i = 0; i < p.columns / 2; ++i) {
      const auto& left = p.left[t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8];
      const auto& right = p.right[i / 4 * 8 + t % 4 * 2 + i % 2];
      float& sum = held.values[t][i];
      if (!p.add) sum = 0;
      for (std::size_t k = 0; k < 16; ++k) sum += left[k] * right[k];
    }
  }
}

/// Ends all groups but the last `pending`.
void finish(Warpgroup& own, std::size_t pending) {
  const std::size_t committed = own.groups.empty() ? 0 : own.groups.back();
  if (committed != own.products.size()) fail("a wait for products that were not committed");
  own.fenced = false;
  if (own.groups.size() <= pending) return;
  const std::size_t done = own.groups[own.groups.size() - 1 - pending];
  const auto of = [](const auto& sums) { return [&sums](const auto& each) { return each.sums == sums; }; };
  for (std::size_t i = 0; i < done; ++i) {
    Product& p = own.products[i];
    finish(p, *std::find_if(own.held.begin(), own.held.end(), of(p.sums)));
  }
  own.products.erase(own.products.begin(), own.products.begin() + static_cast<std::ptrdiff_t>(done));
  own.groups.erase(own.groups.begin(), own.groups.end() - static_cast<std::ptrdiff_t>(pending));
  for (std::size_t& end : own.groups) end -= done;
  std::erase_if(own.held, [&](const Held& held) {
    if (std::any_of(own.products.begin(), own.products.end(), of(held.sums))) return false;
    for (std::size_t t = 0; t < warpgroup; ++t) std::copy(held.values[t].begin(), held.values[t].end(), held.sums[t]);
    return true;
  });
}

}  // namespace

std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(static_cast<const std::byte*>(shared) - block().shared());
}

void publish_to_products() {
  block().running().unpublished = false;
}

void warpgroup_fence(Where where) {
  block().wait_for_warpgroup(where, nullptr, [](void* const*) { block().own_warpgroup().fenced = true; });
}

void warpgroup_commit(Where where) {
  block().wait_for_warpgroup(where, nullptr, [](void* const*) {
    Warpgroup& own = block().own_warpgroup();
    own.groups.push_back(own.products.size());
  });
}

void warpgroup_wait(int pending, Where where) {
  block().wait_for_warpgroup(where, &pending, [](void* const* lanes) {
    finish(block().own_warpgroup(), static_cast<std::size_t>(*static_cast<const int*>(lanes[0])));
  });
}

void multiply_add_64(float* d, int columns, bool add, const std::uint32_t* a_fragments, std::uint64_t a,
                     std::uint64_t b, abi::Storage storage, Where where) {
  struct Lane {
    float* d;
    int columns;
    bool add;
    const std::uint32_t* fragments;
    std::uint64_t a, b;
    abi::Storage storage;
  } lane{d, columns, add, a_fragments, a, b, storage};
  block().wait_for_warpgroup(where, &lane, [](void* const* lanes) {
    const auto lane_of = [&](std::size_t t) -> const Lane& { return *static_cast<Lane*>(lanes[t]); };
    Warpgroup& own = block().own_warpgroup();
    if (!own.fenced) fail("a product of a warpgroup without a fence before it");
    if (block().unpublished()) fail("a product whose factors in shared memory were not published to it");
    const Lane& first = lane_of(0);
    Product made{{}, {}, {}, {}, first.a, first.b, static_cast<std::size_t>(first.columns), first.add, first.storage};
    for (std::size_t t = 0; t < warpgroup; ++t) {
      const Lane& own_lane = lane_of(t);
      if (own_lane.a != first.a || own_lane.b != first.b || own_lane.columns != first.columns ||
          own_lane.add != first.add) {
        fail("threads of one warpgroup name different products");
      }
      made.sums[t] = own_lane.d;
      made.fragments[t] = own_lane.fragments;
    }
    made.left = left_factor(made);
    made.right = right_factor(made);
    const bool known =
        std::any_of(own.held.begin(), own.held.end(), [&](const Held& each) { return each.sums == made.sums; });
    if (!known) {
      Held held{made.sums, {}};
      for (std::size_t t = 0; t < warpgroup; ++t) {
        held.values[t].resize(made.columns / 2);
        if (made.add) std::copy(made.sums[t], made.sums[t] + made.columns / 2, held.values[t].begin());
        std::fill(made.sums[t], made.sums[t] + made.columns / 2, std::nanf(""));
      }
      own.held.push_back(std::move(held));
    }
    own.products.push_back(std::move(made));
  });
}

}  // namespace attest::cuda::emulator
