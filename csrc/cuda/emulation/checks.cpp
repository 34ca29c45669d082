// Check mode: looks at every load and store of the kernels.
//
// Kernels are compiled with -fsanitize=thread, which calls __tsan_read4(address) and its kin at
// every access; they are here, in place of ThreadSanitizer's own. For each word of memory they keep
// who wrote and who read it last, and in which phase of the block (from barrier to barrier).
//
// Two accesses of different threads race when one of them writes, not both are atomic, and neither
//   * a barrier of their block lies between them (another block has none in common), nor
//   * a __syncwarp in which both lanes took part: vector clocks per warp.
// Nothing else orders memory: shuffles and votes do not.
#if defined(NNOPS_CUDA_CHECKED)

#include "cuda/emulation/checks.h"

#include <link.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "cuda/emulation/allocations.h"
#include "cuda/emulation/checker.h"
#include "cuda/emulation/place.h"
#include "cuda/emulation/shared_memory.h"
#include "cuda/emulation/traffic.h"

namespace nnops::emulation {
namespace {

// --- what is known of a word --------------------------------------------------------------------

struct Access {
  uint32_t epoch = 0;        // the phase, numbered through all blocks and launches; 0: none
  uint32_t thread : 10 = 0;  // in its block
  uint32_t clock : 22 = 0;   // of the thread, in its phase
  Place place;
};

// The last access, and one before it by another warp or block if there was any, else by another
// lane: enough for a later one to find somebody whom it races with.
struct Accesses {
  Access last, other;
};

struct Cell {
  Access write;
  Accesses reads, atomics;
};

// Of 4 bytes. They share a cell until an access takes less than all of them.
struct Word {
  Cell cell;
  std::unique_ptr<Cell[]> bytes;
};

constexpr size_t kPageBytes = 1024;
struct Page {
  Word words[kPageBytes / 4];
};

enum class Kind { kRead, kConstantRead, kWrite, kAtomic };

enum class State : unsigned char { kOutside, kUnwritten, kWritten, kInFlight };

// What a kernel may touch besides shared memory.
struct Range {
  const char* begin;
  const char* end;
  bool global;  // else a thread's own, or constant
  bool holds(const char* address) const { return address >= begin && address < end; }
};

const char* verb(Kind kind) {
  if (kind == Kind::kWrite) return "writes";
  return kind == Kind::kAtomic ? "updates atomically" : "reads";
}

// --- the checker of one OS thread ---------------------------------------------------------------

class Checker {
 public:
  ~Checker() {
    if (traffic_ != nullptr) traffic_->write();
  }
  void launch_begins(const char* kernel, const SharedMemory& shared, const void* arguments,
                     size_t argument_bytes);
  void launch_ends();
  void block_begins();
  void array_declared(const void* begin, size_t bytes);
  void block_barrier();
  void warp_barrier(uint32_t mask);
  void copy_starts(const char* address, size_t bytes, Place place);
  void copy_lands(const char* address, size_t bytes, Place place);
  void access(const char* address, size_t bytes, size_t alignment, Kind kind, Place place);

 private:
  void touch(Word& word, uintptr_t address, size_t bytes, Kind kind, Place place, bool shared);
  void touch(Cell& cell, const char* address, Kind kind, Place place, bool shared);
  void shared_access(const char* address, size_t bytes, Kind kind, Place place);
  void touch_shared(const char* address, size_t bytes, Kind kind, Place place);
  void global_access(const char* address, size_t bytes, Kind kind, Place place);
  template <typename Words>
  void touch_words(const char* address, size_t bytes, Kind kind, Place place, bool shared,
                   Words words);
  Word& global_word(uintptr_t address);
  const Range& range(const char* address, Kind kind, Place place);

  Access now(Place place) const;
  bool races(const Access& before, bool shared) const;
  bool of_my_warp(const Access& before) const {
    return before.epoch == phase_ && before.thread / 32 == thread_ / 32;
  }
  void record(Accesses& accesses, Place place) const;
  [[noreturn]] void report_race(const char* address, Kind kind, Place place, bool shared,
                                const Access& before, const char* before_verb);
  std::string where(const char* address, bool shared) const;

  const SharedMemory* shared_ = nullptr;
  // Epochs at which the launch, the block and the phase began.
  uint32_t launch_ = 1, block_ = 1, phase_ = 1;
  unsigned thread_ = 0;  // that accesses

  // clock_[t] counts the __syncwarp of thread t in this phase; seen_[t][l] is the clock of lane l
  // of its warp when both last took part in one, by way of others too.
  uint32_t clock_[1024];
  uint32_t seen_[1024][32];
  bool warp_was_ordered_[32] = {};

  State state_[SharedMemory::kBytes] = {};
  std::unique_ptr<Word[]> shared_words_ = std::make_unique<Word[]>(SharedMemory::kBytes / 4);
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  uintptr_t last_page_number_ = 0;
  Page* last_page_ = nullptr;
  bool memory_is_known_ = false;
  std::unique_ptr<Traffic> traffic_;  // null unless wanted
  std::vector<Range> ranges_;         // the latest first, more or less
};

void Checker::launch_begins(const char* kernel, const SharedMemory& shared, const void* arguments,
                            size_t argument_bytes) {
  const std::string file = Traffic::wanted_file();
  if (traffic_ != nullptr && traffic_->file() != file) {
    traffic_->write();
    traffic_.reset();
  }
  if (traffic_ == nullptr && !file.empty()) traffic_ = std::make_unique<Traffic>(file);
  if (traffic_ != nullptr) traffic_->begin_launch(kernel);
  shared_ = &shared;
  if (phase_ > 0xf0000000) {  // start again before the numbers run out
    phase_ = 1;
    shared_words_ = std::make_unique<Word[]>(SharedMemory::kBytes / 4);
    pages_.clear();
  }
  launch_ = phase_ + 1;
  ranges_.clear();
  const char* begin = static_cast<const char*>(arguments);
  ranges_.push_back({begin, begin + argument_bytes, false});
  memory_is_known_ = allocations_are_known();
  if (!memory_is_known_) return;
  // A kernel has no business but with the allocations that its arguments point to.
  for (size_t i = 0; i + sizeof(void*) <= argument_bytes; i += sizeof(void*)) {
    const void* pointer;
    std::memcpy(&pointer, begin + i, sizeof(pointer));
    const Allocation allocation = find_allocation(pointer);
    if (allocation.begin != nullptr) {
      ranges_.push_back({allocation.begin, allocation.begin + allocation.bytes, true});
    }
  }
}

void Checker::launch_ends() {
  std::memset(state_, static_cast<int>(State::kOutside), shared_->used());
  if (traffic_ != nullptr) traffic_->meet();
  // What is known lives on only because clearing it takes time.
  constexpr size_t kMaxPages = (128 << 20) / sizeof(Page);
  if (pages_.size() > kMaxPages) pages_.clear();
  last_page_ = nullptr;
}

void Checker::block_begins() {
  block_ = phase_ + 1;
  for (const SharedMemory::Array& array : shared_->arrays()) {
    array_declared(array.begin, array.bytes);
  }
  block_barrier();
}

void Checker::array_declared(const void* begin, size_t bytes) {
  std::memset(state_ + shared_->offset(begin), static_cast<int>(State::kUnwritten), bytes);
}

void Checker::block_barrier() {
  ++phase_;
  if (traffic_ != nullptr) traffic_->meet();
  std::fill_n(clock_, 1024, 1);
  for (int warp = 0; warp < 32; ++warp) {
    if (warp_was_ordered_[warp]) std::memset(seen_[32 * warp], 0, 32 * sizeof(seen_[0]));
    warp_was_ordered_[warp] = false;
  }
}

void Checker::warp_barrier(uint32_t mask) {
  const int warp = running_thread / 32;
  uint32_t joined[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int thread = 32 * warp + lane;
    for (int i = 0; i < 32; ++i) joined[i] = std::max(joined[i], seen_[thread][i]);
    joined[lane] = clock_[thread]++;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) std::memcpy(seen_[32 * warp + lane], joined, sizeof(joined));
  }
  warp_was_ordered_[warp] = true;
}

// --- accesses -----------------------------------------------------------------------------------

void Checker::access(const char* address, size_t bytes, size_t alignment, Kind kind, Place place) {
  thread_ = static_cast<unsigned>(running_thread);
  const bool shared = shared_->holds(address);
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    fail(std::string("misaligned: ") + verb(kind) + ' ' + std::to_string(bytes) +
         " bytes at once, " + where(address, shared) + ", at " + place.text());
  }
  if (shared) {
    shared_access(address, bytes, kind, place);
  } else {
    global_access(address, bytes, kind, place);
  }
}

void Checker::shared_access(const char* address, size_t bytes, Kind kind, Place place) {
  State* state = state_ + shared_->offset(address);
  for (size_t i = 0; i < bytes; ++i) {
    const auto report = [&](const char* rule) {
      fail(std::string(rule) + verb(kind) + ' ' + where(address + i, true) + ", at " +
           place.text());
    };
    if (state[i] == State::kOutside) report("out of bounds: ");
    if (state[i] == State::kInFlight) report("copy_async has not been waited for: ");
    if (kind == Kind::kWrite) {
      state[i] = State::kWritten;
    } else if (state[i] == State::kUnwritten) {
      report("uninitialised: ");
    }
  }
  if (traffic_ != nullptr) {
    traffic_->access(running_thread, place, true, kind == Kind::kWrite, shared_->offset(address),
                     static_cast<unsigned>(bytes));
  }
  touch_shared(address, bytes, kind, place);
}

void Checker::touch_shared(const char* address, size_t bytes, Kind kind, Place place) {
  touch_words(address, bytes, kind, place, true, [this](uintptr_t word) -> Word& {
    return shared_words_[shared_->offset(reinterpret_cast<const char*>(word)) / 4];
  });
}

void Checker::copy_starts(const char* address, size_t bytes, Place place) {
  access(address, bytes, bytes, Kind::kWrite, place);
  std::memset(state_ + shared_->offset(address), static_cast<int>(State::kInFlight), bytes);
}

void Checker::copy_lands(const char* address, size_t bytes, Place place) {
  std::memset(state_ + shared_->offset(address), static_cast<int>(State::kWritten), bytes);
  thread_ = static_cast<unsigned>(running_thread);
  touch_shared(address, bytes, Kind::kWrite, place);
}

void Checker::global_access(const char* address, size_t bytes, Kind kind, Place place) {
  const Range& within = range(address, kind, place);
  if (!within.global) return;
  if (address + bytes > within.end) {
    fail(std::string("out of bounds: ") + verb(kind) + ' ' + where(within.end, false) + ", at " +
         place.text());
  }
  if (traffic_ != nullptr) {
    traffic_->access(running_thread, place, false, kind == Kind::kWrite,
                     reinterpret_cast<uintptr_t>(address), static_cast<unsigned>(bytes));
  }
  touch_words(address, bytes, kind, place, false,
              [this](uintptr_t word) -> Word& { return global_word(word); });
}

template <typename Words>
void Checker::touch_words(const char* address, size_t bytes, Kind kind, Place place, bool shared,
                          Words words) {
  uintptr_t byte = reinterpret_cast<uintptr_t>(address);
  const uintptr_t end = byte + bytes;
  while (byte < end) {
    const uintptr_t next = std::min(end, (byte | 3) + 1);
    touch(words(byte & ~uintptr_t{3}), byte, next - byte, kind, place, shared);
    byte = next;
  }
}

void Checker::touch(Word& word, uintptr_t address, size_t bytes, Kind kind, Place place,
                    bool shared) {
  const char* first = reinterpret_cast<const char*>(address);
  if (word.bytes == nullptr) {
    if (bytes == 4) {
      touch(word.cell, first, kind, place, shared);
      return;
    }
    word.bytes = std::make_unique<Cell[]>(4);
    std::fill_n(word.bytes.get(), 4, word.cell);
  }
  for (size_t i = 0; i < bytes; ++i) {
    touch(word.bytes[address % 4 + i], first + i, kind, place, shared);
  }
}

void Checker::touch(Cell& cell, const char* address, Kind kind, Place place, bool shared) {
  const auto check = [&](const Access& before, const char* before_verb) {
    if (races(before, shared)) report_race(address, kind, place, shared, before, before_verb);
  };
  check(cell.write, "wrote");
  if (kind == Kind::kConstantRead && cell.write.epoch >= launch_) {
    fail("__ldg of what the same launch wrote: " + where(address, shared) + ", at " + place.text() +
         "; written at " + cell.write.place.text());
  }
  if (kind != Kind::kAtomic) {
    check(cell.atomics.last, "updated it atomically");
    check(cell.atomics.other, "updated it atomically");
  }
  if (kind == Kind::kWrite || kind == Kind::kAtomic) {
    check(cell.reads.last, "read it");
    check(cell.reads.other, "read it");
  }
  if (kind == Kind::kWrite) {
    cell.write = now(place);
  } else {
    record(kind == Kind::kAtomic ? cell.atomics : cell.reads, place);
  }
}

Access Checker::now(Place place) const {
  Access access;
  access.epoch = phase_;
  access.thread = thread_;
  access.clock = clock_[thread_];
  access.place = place;
  return access;
}

void Checker::record(Accesses& accesses, Place place) const {
  const Access& last = accesses.last;
  if ((last.epoch != phase_ || last.thread != thread_) &&
      (accesses.other.epoch < launch_ || of_my_warp(accesses.other) || !of_my_warp(last))) {
    accesses.other = last;
  }
  accesses.last = now(place);
}

bool Checker::races(const Access& before, bool shared) const {
  if (before.epoch == phase_) {
    if (before.thread == thread_) return false;
    return before.thread / 32 != thread_ / 32 || before.clock > seen_[thread_][before.thread % 32];
  }
  // Between the phases of a block lies a barrier; between blocks only the end of the launch.
  return !shared && before.epoch >= launch_ && before.epoch < block_;
}

Word& Checker::global_word(uintptr_t address) {
  const uintptr_t number = address / kPageBytes;
  if (last_page_ == nullptr || number != last_page_number_) {
    std::unique_ptr<Page>& page = pages_[number];
    if (page == nullptr) page = std::make_unique<Page>();
    last_page_ = page.get();
    last_page_number_ = number;
  }
  return last_page_->words[address % kPageBytes / 4];
}

// --- what is where ------------------------------------------------------------------------------

// The segment of a loaded module, or the thread-local variables of the OS thread in one.
Range static_range(const char* address) {
  struct Search {
    const char* address;
    Range found;
  } search{address, {nullptr, nullptr, false}};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        Search& search = *static_cast<Search*>(data);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          const char* begin = reinterpret_cast<const char*>(info->dlpi_addr + header.p_vaddr);
          if (header.p_type == PT_TLS) begin = static_cast<const char*>(info->dlpi_tls_data);
          if (header.p_type != PT_LOAD && header.p_type != PT_TLS) continue;
          if (begin == nullptr) continue;
          const Range range{begin, begin + header.p_memsz, false};
          if (range.holds(search.address)) search.found = range;
        }
        return search.found.begin == nullptr ? 0 : 1;
      },
      &search);
  return search.found;
}

const Range& Checker::range(const char* address, Kind kind, Place place) {
  static const Range own{nullptr, nullptr, false};
  static const Range unknown{nullptr, reinterpret_cast<const char*>(UINTPTR_MAX), true};
  for (size_t i = 0; i < ranges_.size(); ++i) {
    if (!ranges_[i].holds(address)) continue;
    if (i > 0) std::swap(ranges_[i], ranges_[i - 1]);
    return ranges_[i > 0 ? i - 1 : 0];
  }
  if (is_on_running_stack(address)) return own;
  const Range found = static_range(address);
  if (found.begin == nullptr) {
    if (!memory_is_known_) return unknown;
    fail(std::string("out of bounds: ") + verb(kind) + ' ' + where(address, false) + ", at " +
         place.text());
  }
  ranges_.push_back(found);
  return ranges_.back();
}

std::string Checker::where(const char* address, bool shared) const {
  if (shared) {
    const SharedMemory::Array* nearest = nullptr;
    for (const SharedMemory::Array& array : shared_->arrays()) {
      if (nearest == nullptr || array.begin <= address) nearest = &array;
    }
    if (nearest == nullptr) return "shared memory without an array";
    return "byte " + std::to_string(address - nearest->begin) + " of shared array " +
           nearest->name + " of " + std::to_string(nearest->bytes) + " bytes";
  }
  // Of the kernel's memory what is nearest.
  const Range* nearest = nullptr;
  ptrdiff_t least = 4096;
  for (const Range& range : ranges_) {
    if (!range.global) continue;
    const ptrdiff_t distance = std::max(range.begin - address, address - range.end + 1);
    if (distance < least) {
      least = distance;
      nearest = &range;
    }
  }
  if (nearest == nullptr) return "memory that no argument points to";
  return "byte " + std::to_string(address - nearest->begin) + " of global memory of " +
         std::to_string(nearest->end - nearest->begin) + " bytes";
}

void Checker::report_race(const char* address, Kind kind, Place place, bool shared,
                          const Access& before, const char* before_verb) {
  const bool same_block = before.epoch >= block_;
  fail(std::string("race: ") + verb(kind) + ' ' + where(address, shared) + ", at " + place.text() +
       "; " + (same_block ? "thread " : "of another block, thread ") +
       thread_text(static_cast<int>(before.thread)) + ' ' + before_verb + ", at " +
       before.place.text() + (same_block ? ", with no barrier between" : ""));
}

thread_local std::unique_ptr<Checker> checker_of_thread;
NNOPS_EMULATION_THREAD_LOCAL Checker* checker;

// The standard library's templates may be those that a kernel's file instrumented.
NNOPS_EMULATION_THREAD_LOCAL bool busy;

inline void hook(const void* address, size_t bytes, size_t alignment, Kind kind, Place place) {
  if (running_thread < 0 || busy) return;
  const char* byte = static_cast<const char*>(address);
  if (is_on_running_stack(byte) ||
      static_cast<size_t>(byte - reinterpret_cast<const char*>(&threadIdx)) < sizeof(threadIdx)) {
    return;  // what most accesses are
  }
  busy = true;
  checker->access(byte, bytes, alignment, kind, place);
  busy = false;
}

}  // namespace

// --- the interface ------------------------------------------------------------------------------

void check_launch_begins(const char* kernel, const SharedMemory& shared, const void* arguments,
                         size_t argument_bytes) {
  if (checker == nullptr) {
    checker_of_thread = std::make_unique<Checker>();
    checker = checker_of_thread.get();
  }
  busy = false;
  checker->launch_begins(kernel, shared, arguments, argument_bytes);
}
void check_launch_ends() { checker->launch_ends(); }
void check_block_begins() { checker->block_begins(); }
void check_array_declared(const void* begin, size_t bytes) {
  checker->array_declared(begin, bytes);
}
void check_block_barrier() { checker->block_barrier(); }
void check_warp_barrier(uint32_t mask) { checker->warp_barrier(mask); }
void check_copy_starts(const void* shared, size_t bytes, Site site) {
  checker->copy_starts(static_cast<const char*>(shared), bytes, Place::primitive(site));
}
void check_copy_lands(const void* shared, size_t bytes, Site site) {
  checker->copy_lands(static_cast<const char*>(shared), bytes, Place::primitive(site));
}
void check_read(const void* address, size_t bytes, Site site) {
  checker->access(static_cast<const char*>(address), bytes, bytes, Kind::kRead,
                  Place::primitive(site));
}
void check_constant_read(const void* address, size_t bytes, Site site) {
  checker->access(static_cast<const char*>(address), bytes, bytes, Kind::kConstantRead,
                  Place::primitive(site));
}
void check_atomic(const void* address, size_t bytes, Site site) {
  checker->access(static_cast<const char*>(address), bytes, bytes, Kind::kAtomic,
                  Place::primitive(site));
}

}  // namespace nnops::emulation

// What -fsanitize=thread calls.

#define NNOPS_HOOK(name, bytes, alignment, kind)                                           \
  extern "C" void name(const void* address) {                                              \
    using namespace nnops::emulation;                                                      \
    hook(address, bytes, alignment, Kind::kind, Place::code(__builtin_return_address(0))); \
  }
#define NNOPS_HOOKS(bytes)                                     \
  NNOPS_HOOK(__tsan_read##bytes, bytes, bytes, kRead)          \
  NNOPS_HOOK(__tsan_write##bytes, bytes, bytes, kWrite)        \
  NNOPS_HOOK(__tsan_unaligned_read##bytes, bytes, 1, kRead)    \
  NNOPS_HOOK(__tsan_unaligned_write##bytes, bytes, 1, kWrite)  \
  NNOPS_HOOK(__tsan_volatile_read##bytes, bytes, bytes, kRead) \
  NNOPS_HOOK(__tsan_volatile_write##bytes, bytes, bytes, kWrite)
NNOPS_HOOKS(1)
NNOPS_HOOKS(2)
NNOPS_HOOKS(4)
NNOPS_HOOKS(8)
NNOPS_HOOKS(16)

extern "C" void __tsan_read_range(const void* address, size_t bytes) {
  using namespace nnops::emulation;
  hook(address, bytes, 1, Kind::kRead, Place::code(__builtin_return_address(0)));
}
extern "C" void __tsan_write_range(const void* address, size_t bytes) {
  using namespace nnops::emulation;
  hook(address, bytes, 1, Kind::kWrite, Place::code(__builtin_return_address(0)));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_read(void*) {}
extern "C" void __tsan_vptr_update(void*, void*) {}

#endif  // NNOPS_CUDA_CHECKED
