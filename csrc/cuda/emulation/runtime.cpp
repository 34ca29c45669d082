// The emulator: runs the threads of a block as fibers, one after the other.
//
// A thread runs until it waits (a barrier, a warp operation) or ends. Then the next ready one of
// its warp runs, and when none is left, one of another warp. A fiber whose thread has ended goes on
// with one that has not begun, so that kernels without barriers run on a single fiber.
#include "cuda/emulation/runtime.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/emulation/checker.h"
#include "cuda/emulation/fiber.h"
#include "cuda/emulation/order.h"
#include "cuda/emulation/shared_memory.h"

NNOPS_EMULATION_THREAD_LOCAL uint3 threadIdx;
NNOPS_EMULATION_THREAD_LOCAL uint3 blockIdx;
NNOPS_EMULATION_THREAD_LOCAL uint3 blockDim;
NNOPS_EMULATION_THREAD_LOCAL uint3 gridDim;

namespace nnops::emulation {

NNOPS_EMULATION_THREAD_LOCAL int running_thread = -1;

int lane_index() { return running_thread % 32; }

std::string text(Site site) {
  std::string file = site.file_name();
  const size_t csrc = file.rfind("csrc/");
  if (csrc != std::string::npos) file.erase(0, csrc);
  return file + ':' + std::to_string(site.line()) + ':' + std::to_string(site.column());
}

std::string text(uint3 v) {
  return '(' + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ')';
}

namespace {

uint3 thread_index(int thread) {
  const unsigned t = static_cast<unsigned>(thread);
  return {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
}

}  // namespace

std::string thread_text(int thread) { return text(thread_index(thread)); }

namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / 32;

std::string hexadecimal(uint32_t mask) {
  char digits[11];
  std::snprintf(digits, sizeof(digits), "0x%08x", mask);
  return digits;
}

bool same(Site a, Site b) {
  if (std::memcmp(&a, &b, sizeof(Site)) == 0) return true;  // it is a pointer
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

// cp.async of one thread, oldest first; a group is the copies up to where it was committed.
struct Copies {
  struct Copy {
    void* shared;
    const void* global;
    unsigned bytes;
    bool valid;
    Site site;
  };
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // the number of copies when each was committed

  void clear() {
    copies.clear();
    groups.clear();
  }
};

struct Thread {
  enum State { kUnstarted, kRunning, kAtBarrier, kInWarpOperation, kExited };
  State state;
  Fiber* fiber;
  // What it waits for.
  const char* operation;
  Site site;
  uint32_t mask;
  void* operands;
};

// Lanes that have come to a warp operation and wait for the others of the mask.
struct Meeting {
  uint32_t mask;
  uint32_t here;
  const char* operation;
  Site site;
};

struct Warp {
  uint32_t lanes;  // that the block has
  uint32_t ready;  // to run
  uint32_t exited;
  int meeting_count;
  Meeting meetings[32];  // in no order; of different masks
};

// The GPU of one OS thread.
class Device {
 public:
  void launch(const char* kernel, Site site, dim3 grid, dim3 block, size_t dynamic_bytes,
              void (*call)(const void*), const void* arguments, size_t argument_bytes);

  unsigned block_barrier(const char* operation, bool predicate, Site site);
  void warp_operation(const char* operation, uint32_t mask, void* operands, Combine combine,
                      bool orders_memory, Site site);
  uint32_t active_lanes() const;
  [[noreturn]] void fail(const std::string& message);
  [[noreturn]] void fail(const std::string& message, Site site);

  bool is_on_running_stack(const void* address) { return running().fiber->holds(address); }
  SharedMemory& shared() { return shared_; }
  Copies& copies() { return copies_[running_thread]; }

 private:
  static void fiber_entry();
  [[noreturn]] void run_threads();
  void run_block(uint64_t number);
  void suspend();
  void exit_thread();
  void land_everything(Copies& copies);
  void make_ready(Warp& warp, uint32_t lanes);
  Thread* next();
  void begin(Thread& thread);
  Fiber* idle_fiber();
  void report_deadlock();

  Thread& running() { return threads_[running_thread]; }
  Warp& running_warp() { return warps_[running_thread / 32]; }
  std::string kernel_text() const;

  // The launch.
  const char* kernel_ = nullptr;
  Site launch_site_;
  void (*call_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  std::string error_;
  Order order_;
  SharedMemory shared_;

  // The block.
  int thread_count_ = 0;
  uint3 indices_[kMaxThreads];  // threadIdx
  Thread threads_[kMaxThreads];
  Warp warps_[kMaxWarps];
  uint32_t ready_warps_ = 0;
  int warp_ = 0;  // that runs
  int exited_ = 0;
  int at_barrier_ = 0, first_at_barrier_ = 0;
  unsigned votes_ = 0, vote_result_ = 0;
  std::vector<Copies> copies_ = std::vector<Copies>(kMaxThreads);

  Fiber launcher_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_fibers_;
};

thread_local std::unique_ptr<Device> device_of_thread;
// As device_of_thread.get(), without the check whether it was constructed.
NNOPS_EMULATION_THREAD_LOCAL Device* device;

// --- launches -----------------------------------------------------------------------------------

void Device::launch(const char* kernel, Site site, dim3 grid, dim3 block, size_t dynamic_bytes,
                    void (*call)(const void*), const void* arguments, size_t argument_bytes) {
  if (running_thread >= 0) fail("a kernel cannot launch kernels", site);
  kernel_ = kernel;
  launch_site_ = site;
  call_ = call;
  arguments_ = arguments;
  error_.clear();
  const auto require = [&](bool condition, const std::string& rule) {
    if (!condition) {
      throw std::runtime_error(kernel_text() + ": " + rule + ", but got grid " + text(grid) +
                               ", block " + text(block) + ", " + std::to_string(dynamic_bytes) +
                               " bytes of dynamic shared memory");
    }
  };
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  require(
      threads >= 1 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 && threads <= kMaxThreads,
      "a block must have 1 to 1024 threads, at most 64 along z");
  require(grid.x >= 1 && grid.x <= 0x7fffffff && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 &&
              grid.z <= 65535,
          "a grid must have 1 to 2^31 - 1 blocks along x and 1 to 65535 along y and z");
  require(dynamic_bytes <= kSharedLimit, "shared memory must not exceed shared_memory_limit()");

  order_ = Order::from_environment();
  blockDim = block;
  gridDim = grid;
  thread_count_ = static_cast<int>(threads);
  for (int t = 0; t < thread_count_; ++t) indices_[t] = thread_index(t);
  shared_.begin_launch(dynamic_bytes);
  check_launch_begins(kernel, shared_, arguments, argument_bytes);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  order_.begin_blocks(blocks);
  for (uint64_t i = 0; i < blocks && error_.empty(); ++i) run_block(order_.block(i));
  check_launch_ends();
  shared_.end_launch();
  running_thread = -1;
  if (error_.empty()) return;
  for (Copies& copies : copies_) copies.clear();
  idle_fibers_.clear();
  for (const auto& fiber : fibers_) {
    fiber->restart();
    idle_fibers_.push_back(fiber.get());
  }
  throw std::runtime_error(error_);
}

void Device::run_block(uint64_t number) {
  blockIdx = {static_cast<unsigned>(number % gridDim.x),
              static_cast<unsigned>(number / gridDim.x % gridDim.y),
              static_cast<unsigned>(number / gridDim.x / gridDim.y)};
  shared_.begin_block();
  check_block_begins();
  exited_ = at_barrier_ = 0;
  votes_ = 0;
  ready_warps_ = 0;
  const int warps = (thread_count_ + 31) / 32;
  for (int w = 0; w < warps; ++w) {
    const int lanes = thread_count_ - 32 * w;
    const uint32_t mask = lanes >= 32 ? 0xffffffff : (1u << lanes) - 1;
    warps_[w].lanes = warps_[w].ready = mask;
    warps_[w].exited = 0;
    warps_[w].meeting_count = 0;
    ready_warps_ |= 1u << w;
  }
  for (int t = 0; t < thread_count_; ++t) threads_[t].state = Thread::kUnstarted;
  warp_ = order_.choose(ready_warps_);
  Thread* first = next();
  begin(*first);
  Fiber::change(launcher_, *first->fiber);
  if (!error_.empty()) return;
  if (const SharedMemory::Array* array = shared_.overrun()) {
    error_ = kernel_text() + ", block " + text(blockIdx) +
             ": a write before the beginning or past the end of shared array " + array->name;
  }
}

// --- fibers -------------------------------------------------------------------------------------

void Device::fiber_entry() {
  Fiber::entered();
  device->run_threads();
}

void Device::run_threads() {
  Fiber& fiber = *running().fiber;
  for (;;) {
    call_(arguments_);
    exit_thread();
    Thread* thread = next();
    if (thread != nullptr && thread->state == Thread::kUnstarted) {
      idle_fibers_.push_back(&fiber);  // for begin to take
      begin(*thread);
      continue;
    }
    if (thread == nullptr && exited_ < thread_count_) report_deadlock();
    idle_fibers_.push_back(&fiber);
    if (thread != nullptr) begin(*thread);
    Fiber::change(fiber, thread == nullptr ? launcher_ : *thread->fiber);
  }
}

// Goes on with the next thread that is ready; returns when it is the turn of the running one.
void Device::suspend() {
  Thread& thread = running();
  Thread* chosen = next();
  if (chosen == nullptr) report_deadlock();
  if (chosen == &thread) {
    thread.state = Thread::kRunning;
    return;
  }
  begin(*chosen);
  Fiber::change(*thread.fiber, *chosen->fiber);
}

void Device::begin(Thread& thread) {
  if (thread.state == Thread::kUnstarted) thread.fiber = idle_fiber();
  thread.state = Thread::kRunning;
  running_thread = static_cast<int>(&thread - threads_);
  threadIdx = indices_[running_thread];
}

Fiber* Device::idle_fiber() {
  if (idle_fibers_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>(fiber_entry, static_cast<int>(fibers_.size())));
    return fibers_.back().get();
  }
  Fiber* fiber = idle_fibers_.back();
  idle_fibers_.pop_back();
  return fiber;
}

Thread* Device::next() {
  if (warps_[warp_].ready == 0) {
    if (ready_warps_ == 0) return nullptr;
    warp_ = order_.choose(ready_warps_);
  }
  Warp& warp = warps_[warp_];
  const int lane = order_.choose(warp.ready);
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) ready_warps_ &= ~(1u << warp_);
  return &threads_[32 * warp_ + lane];
}

void Device::make_ready(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  ready_warps_ |= 1u << (&warp - warps_);
}

void Device::exit_thread() {
  Thread& thread = running();
  if (!copies().groups.empty() || !copies().copies.empty()) land_everything(copies());
  thread.state = Thread::kExited;
  running_warp().exited |= 1u << lane_index();
  ++exited_;
  const Warp& warp = running_warp();
  for (int m = 0; m < warp.meeting_count; ++m) {
    const Meeting& meeting = warp.meetings[m];
    if (meeting.mask >> lane_index() & 1) {
      fail("the thread ends while lane " + std::to_string(__builtin_ctz(meeting.here)) +
           " waits for it in " + meeting.operation + ", " + text(meeting.site));
    }
  }
  if (at_barrier_ > 0) {
    const Thread& other = threads_[first_at_barrier_];
    fail("the thread ends while thread " + thread_text(first_at_barrier_) + " waits at " +
         other.operation + ", " + text(other.site));
  }
}

// --- threads working together -------------------------------------------------------------------

unsigned Device::block_barrier(const char* operation, bool predicate, Site site) {
  Thread& thread = running();
  if (exited_ > 0) {
    int gone = 0;
    while (threads_[gone].state != Thread::kExited) ++gone;
    fail(std::string(operation) + " after thread " + thread_text(gone) + " has ended", site);
  }
  if (at_barrier_ == 0) {
    first_at_barrier_ = running_thread;
    votes_ = 0;
  } else {
    const Thread& first = threads_[first_at_barrier_];
    if (!same(first.site, site) || std::strcmp(first.operation, operation) != 0) {
      fail(std::string(operation) + " while thread " + thread_text(first_at_barrier_) +
               " waits at another barrier, " + first.operation + ", " + text(first.site),
           site);
    }
  }
  thread.state = Thread::kAtBarrier;
  thread.operation = operation;
  thread.site = site;
  votes_ += predicate;
  if (++at_barrier_ == thread_count_) {
    at_barrier_ = 0;
    vote_result_ = votes_;
    check_block_barrier();
    for (int w = 0; 32 * w < thread_count_; ++w) make_ready(warps_[w], warps_[w].lanes);
  }
  suspend();
  return vote_result_;
}

void Device::warp_operation(const char* operation, uint32_t mask, void* operands, Combine combine,
                            bool orders_memory, Site site) {
  Thread& thread = running();
  Warp& warp = running_warp();
  const int lane = lane_index();
  Thread* const lanes = &thread - lane;
  const auto refuse = [&](const std::string& what) {
    fail(std::string(operation) + " with mask " + hexadecimal(mask) + what, site);
  };
  const auto first = [](uint32_t set) { return std::to_string(__builtin_ctz(set)); };
  if (!(mask >> lane & 1)) refuse(", which lacks the calling lane " + std::to_string(lane));
  if (mask & ~warp.lanes) refuse(", but the block has no lane " + first(mask & ~warp.lanes));
  if (mask & warp.exited) refuse(", but lane " + first(mask & warp.exited) + " has ended");
  thread.state = Thread::kInWarpOperation;
  thread.operation = operation;
  thread.site = site;
  thread.mask = mask;
  thread.operands = operands;

  // Lanes that wait with another mask may still come here later; with this one they must be here.
  int m = 0;
  while (m < warp.meeting_count && warp.meetings[m].mask != mask) ++m;
  Meeting& meeting = warp.meetings[m];
  if (m == warp.meeting_count) {
    meeting = {mask, 0, operation, site};
    ++warp.meeting_count;
  } else if (!same(meeting.site, site) || std::strcmp(meeting.operation, operation) != 0) {
    refuse(" while lane " + first(meeting.here) + " waits in another, " + meeting.operation + ", " +
           text(meeting.site));
  }
  meeting.here |= 1u << lane;
  if (meeting.here == mask) {
    meeting = warp.meetings[--warp.meeting_count];
    if (combine != nullptr) {
      void* all[32];
      for (int i = 0; i < 32; ++i) all[i] = mask >> i & 1 ? lanes[i].operands : nullptr;
      combine(all, mask);
    }
    if (orders_memory) check_warp_barrier(mask);
    make_ready(warp, mask);
  }
  suspend();
}

uint32_t Device::active_lanes() const { return 1u << lane_index(); }

// Somebody waits in a warp operation: who waits at a barrier is let go by the last thread, or was
// told that there will be none.
void Device::report_deadlock() {
  int t = 0;
  while (threads_[t].state != Thread::kInWarpOperation) ++t;
  const Thread& thread = threads_[t];
  const Thread* missing = threads_ + t / 32 * 32;
  for (uint32_t lanes = thread.mask; lanes != 0; lanes &= lanes - 1) {
    const Thread* other = threads_ + t / 32 * 32 + __builtin_ctz(lanes);
    if (other->state != Thread::kInWarpOperation || other->mask != thread.mask) missing = other;
  }
  std::string what = " has ended";
  if (missing->state != Thread::kExited) {
    what = std::string(" waits in ") + missing->operation;
    if (missing->state == Thread::kInWarpOperation) {
      what += " with mask " + hexadecimal(missing->mask);
    }
    what += ", " + text(missing->site);
  }
  fail(std::string(thread.operation) + " with mask " + hexadecimal(thread.mask) + ", " +
       text(thread.site) + ", waits in lane " + std::to_string(t % 32) + " for ever: lane " +
       std::to_string((missing - threads_) % 32) + what);
}

std::string Device::kernel_text() const {
  return std::string("kernel ") + kernel_ + " launched at " + text(launch_site_);
}

// Not an exception: check mode fails inside of calls that the compiler believes not to throw. The
// fibers stay where they are and are used anew by the next launch; kernels own nothing.
void Device::fail(const std::string& message) {
  error_ = kernel_text() + ", block " + text(blockIdx) + ", thread " + thread_text(running_thread) +
           ": " + message;
  Fiber::change(*running().fiber, launcher_);
  __builtin_unreachable();
}

void Device::fail(const std::string& message, Site site) { fail(message + ", at " + text(site)); }

// --- asynchronous copies ------------------------------------------------------------------------

void land(const Copies::Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.shared, copy.global, copy.bytes);
  } else {
    std::memset(copy.shared, 0, copy.bytes);
  }
  check_copy_lands(copy.shared, copy.bytes, copy.site);
}

void land_first(Copies& copies, size_t count) {
  for (size_t i = 0; i < count; ++i) land(copies.copies[i]);
  copies.copies.erase(copies.copies.begin(), copies.copies.begin() + static_cast<ptrdiff_t>(count));
}

void Device::land_everything(Copies& copies) {
  land_first(copies, copies.copies.size());
  copies.groups.clear();
}

}  // namespace

// --- the interface ------------------------------------------------------------------------------

void launch(const char* kernel, Site site, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
            void (*call)(const void*), const void* arguments, size_t argument_bytes) {
  if (device == nullptr) {
    device_of_thread = std::make_unique<Device>();
    device = device_of_thread.get();
  }
  device->launch(kernel, site, grid, block, dynamic_shared_bytes, call, arguments, argument_bytes);
}

unsigned block_barrier(const char* operation, bool predicate, Site site) {
  return device->block_barrier(operation, predicate, site);
}

void warp_operation(const char* operation, uint32_t mask, void* operands, Combine combine,
                    Site site) {
  device->warp_operation(operation, mask, operands, combine, false, site);
}

void warp_barrier(uint32_t mask, Site site) {
  device->warp_operation("__syncwarp", mask, nullptr, nullptr, true, site);
}

uint32_t active_lanes() { return device->active_lanes(); }

void fail(const char* message, Site site) { device->fail(message, site); }
void fail(const std::string& message) { device->fail(message); }

bool is_on_running_stack(const void* address) { return device->is_on_running_stack(address); }

void* shared_array(const SharedArray& array) {
  const size_t arrays = device->shared().arrays().size();
  void* memory = device->shared().declared(array);
  if (device->shared().arrays().size() > arrays) check_array_declared(memory, array.bytes);
  if (memory == nullptr) {
    device->fail("the static shared arrays of a block must not exceed 48 KiB", array.site);
  }
  return memory;
}

void* dynamic_shared_array(const char* name, Site site) {
  void* memory = device->shared().dynamic();
  if (memory == nullptr) {
    device->fail(std::string(name) + ": the launch gives no dynamic shared memory", site);
  }
  return memory;
}

void start_copy(void* shared, const void* global, unsigned bytes, bool valid, Site site) {
  const auto misaligned = [bytes](const void* address) {
    return reinterpret_cast<uintptr_t>(address) % bytes != 0;
  };
  if (misaligned(shared) || (valid && misaligned(global))) {
    device->fail("copy_async of " + std::to_string(bytes) + " bytes with a misaligned address",
                 site);
  }
  const SharedMemory::Array* target = device->shared().find(shared);
  if (target == nullptr || !target->holds(static_cast<char*>(shared) + bytes - 1)) {
    device->fail("copy_async to an address that is not in one shared array", site);
  }
  if (valid) check_read(global, bytes, site);
  check_copy_starts(shared, bytes, site);
  std::memset(shared, 0xff, bytes);
  device->copies().copies.push_back({shared, global, bytes, valid, site});
}

void commit_copies() {
  Copies& copies = device->copies();
  copies.groups.push_back(copies.copies.size());
}

void wait_for_copies(unsigned groups_in_flight) {
  Copies& copies = device->copies();
  if (copies.groups.size() <= groups_in_flight) return;
  const size_t landing = copies.groups.size() - groups_in_flight;
  const size_t count = copies.groups[landing - 1];
  land_first(copies, count);
  copies.groups.erase(copies.groups.begin(),
                      copies.groups.begin() + static_cast<ptrdiff_t>(landing));
  for (size_t& end : copies.groups) end -= count;
}

}  // namespace nnops::emulation
