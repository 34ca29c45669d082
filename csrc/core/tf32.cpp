#include "core/tf32.h"

#include <atomic>

namespace nnops {
namespace {

std::atomic<bool (*)()> g_read_switch{nullptr};

}  // namespace

bool conv_may_use_tf32() {
  bool (*const read)() = g_read_switch.load(std::memory_order_acquire);
  return read != nullptr && read();
}

void set_tf32_switch(bool (*read)()) { g_read_switch.store(read, std::memory_order_release); }

}  // namespace nnops
