#include "core/workspace.h"

#include <array>
#include <cstddef>
#include <new>
#include <utility>

#include "core/huge_pages.h"

namespace nnops {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr int64_t kPageBytes = 4096;

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
};

Block allocate(int64_t bytes) {
  const Block block{::operator new(static_cast<size_t>(bytes), kAlignment), bytes};
  advise_huge_pages(block.data, bytes);
  return block;
}
void release(const Block& block) { ::operator delete(block.data, kAlignment); }

// False again once the thread's blocks are gone.
thread_local bool t_keeps = false;

class KeptBlocks {
 public:
  KeptBlocks() { t_keeps = true; }
  ~KeptBlocks() {
    t_keeps = false;
    for (const Block& block : blocks_) release(block);
  }
  KeptBlocks(const KeptBlocks&) = delete;
  KeptBlocks& operator=(const KeptBlocks&) = delete;

  // The smallest that has so many bytes, and not many more.
  Block take(int64_t bytes) {
    Block* best = nullptr;
    for (Block& block : blocks_) {
      const bool fits = block.bytes >= bytes && block.bytes / 2 <= bytes;
      if (fits && (best == nullptr || block.bytes < best->bytes)) best = &block;
    }
    return best != nullptr ? std::exchange(*best, Block{}) : Block{};
  }

  // In place of the smallest if there are enough already.
  void give(const Block& block) {
    Block* smallest = blocks_.data();
    for (Block& other : blocks_) {
      if (other.bytes < smallest->bytes) smallest = &other;
    }
    if (block.bytes <= smallest->bytes ||
        bytes() - smallest->bytes + block.bytes > kMostKeptWorkspaceBytes) {
      release(block);
      return;
    }
    release(std::exchange(*smallest, block));
  }

  int64_t bytes() const {
    int64_t total = 0;
    for (const Block& block : blocks_) total += block.bytes;
    return total;
  }

 private:
  std::array<Block, 4> blocks_;
};

KeptBlocks& kept_blocks() {
  thread_local KeptBlocks blocks;
  return blocks;
}

}  // namespace

Workspace::Workspace(int64_t bytes) : data_(nullptr), capacity_(0) {
  if (bytes <= 0) return;
  const int64_t rounded = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  Block block = kept_blocks().take(rounded);
  if (block.data == nullptr) block = allocate(rounded);
  data_ = block.data;
  capacity_ = block.bytes;
}

Workspace::~Workspace() {
  if (data_ == nullptr) return;
  const Block block{data_, capacity_};
  if (t_keeps) {
    kept_blocks().give(block);
  } else {
    release(block);
  }
}

int64_t kept_workspace_bytes() { return kept_blocks().bytes(); }

}  // namespace nnops
