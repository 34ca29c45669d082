#include "ops/packed_weights.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/fingerprint.h"
#include "core/threads.h"

namespace nnops {
namespace {

constexpr int64_t kDefaultLimit = int64_t{256} << 20;

// Packing a weight takes about as long as multiplying it with 30 pixels: with more pixels than
// this it is no matter whether it is packed again.
constexpr int64_t kMostPixels = 2048;
// Weights smaller than this are packed sooner than looked up.
constexpr int64_t kLeastBytes = 1024;
// Larger packed weights take more memory than they save time where they may be done without.
constexpr int64_t kMostOptionalBytes = int64_t{16} << 20;
// A weight that has changed from call to call is asked about this seldom, at last, where its packed
// form may be done without: training does not pay for what only inference can use.
constexpr int kMostUnasked = 15;
// Bytes of weights below which a second thread does not pay.
constexpr int64_t kGrainBytes = int64_t{1} << 19;

struct Key {
  void (*pack)(void*, const void*, const Conv2dGeometry&, int);
  const void* weight;
  Conv2dGeometry packing;
};
static_assert(std::has_unique_object_representations_v<Key>, "compared byte by byte");

std::string_view bytes_of(const Key& key) {
  return {reinterpret_cast<const char*>(&key), sizeof(key)};
}
struct Hash {
  size_t operator()(const Key& key) const { return std::hash<std::string_view>()(bytes_of(key)); }
};
struct Equal {
  bool operator()(const Key& a, const Key& b) const { return bytes_of(a) == bytes_of(b); }
};

struct Entry {
  Key key;
  std::vector<uint64_t> fingerprint;
  std::shared_ptr<const Workspace> packed;  // or null
  int64_t bytes;
  int changes = 0;  // how many times in a row the bytes were other ones
  int unasked = 0;  // how many calls need not ask whether they are
};

int64_t initial_limit() {
  const char* value = std::getenv("NNOPS_PACKED_WEIGHTS");
  if (value == nullptr) return kDefaultLimit;
  char* end = nullptr;
  const long long bytes = std::strtoll(value, &end, 10);
  return end != value && *end == '\0' && bytes >= 0 ? bytes : kDefaultLimit;
}

class Cache {
 public:
  // Never destroyed: threads may call operators while the process ends.
  static Cache& instance() {
    static Cache* const cache = new Cache;
    return *cache;
  }

  // The packed form if these bytes had one kept. `seen`: whether they are those of the last call.
  std::shared_ptr<const Workspace> find(const Key& key, const std::vector<uint64_t>& fingerprint,
                                        bool* seen) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto place = places_.find(key);
    *seen = place != places_.end() && place->second->fingerprint == fingerprint;
    if (!*seen) return nullptr;
    entries_.splice(entries_.begin(), entries_, place->second);
    if (place->second->packed != nullptr) ++reused_;
    return place->second->packed;
  }

  // Whether a call that can do without the packed form should look for it.
  bool is_worth_asking(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto place = places_.find(key);
    if (place == places_.end() || place->second->unasked == 0) return true;
    --place->second->unasked;
    return false;
  }

  void keep(Entry entry) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto place = places_.find(entry.key);
    if (place != places_.end() && place->second->fingerprint != entry.fingerprint) {
      entry.changes = std::min(place->second->changes + 1, kMostUnasked);
      entry.unasked = entry.changes;
    }
    erase(entry.key);
    if (entry.bytes > limit_) return;
    bytes_ += entry.bytes;
    entries_.push_front(std::move(entry));
    places_[entries_.front().key] = entries_.begin();
    evict();
  }

  int64_t limit() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return limit_;
  }
  void set_limit(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    evict();
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    places_.clear();
    entries_.clear();
    bytes_ = 0;
  }
  PackedWeightsState state() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto weights = std::count_if(entries_.begin(), entries_.end(),
                                       [](const Entry& entry) { return entry.packed != nullptr; });
    return {bytes_, weights, reused_};
  }

 private:
  // A fork must not catch the lock held by a thread that the child does not have.
  Cache() {
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  void erase(const Key& key) {
    const auto place = places_.find(key);
    if (place == places_.end()) return;
    bytes_ -= place->second->bytes;
    entries_.erase(place->second);
    places_.erase(place);
  }
  void evict() {
    while (bytes_ > limit_) erase(Key(entries_.back().key));
  }

  std::mutex mutex_;
  std::list<Entry> entries_;  // the most recently used first
  std::unordered_map<Key, std::list<Entry>::iterator, Hash, Equal> places_;
  int64_t limit_ = initial_limit();
  int64_t bytes_ = 0;
  int64_t reused_ = 0;
};

std::shared_ptr<const Workspace> pack_now(const PackingRequest& request) {
  auto packed = std::make_shared<const Workspace>(request.packed_bytes);
  request.pack(packed->data(), request.weight, request.packing,
               thread_count(request.packed_bytes, kGrainBytes));
  return packed;
}

// Whether weights of such a request may be kept from call to call.
bool may_be_kept(const PackingRequest& request) {
  return request.weight_bytes >= kLeastBytes && request.pixels <= kMostPixels &&
         Cache::instance().limit() > 0;
}

// The packed form, kept if the bytes are those asked about before. Otherwise null if `is_optional`.
std::shared_ptr<const Workspace> looked_up(const PackingRequest& request, bool is_optional) {
  Cache& cache = Cache::instance();
  const Key key{request.pack, request.weight, request.packing};
  if (is_optional && !cache.is_worth_asking(key)) return nullptr;
  std::vector<uint64_t> bytes_seen = fingerprint(request.weight, request.weight_bytes,
                                                 thread_count(request.weight_bytes, kGrainBytes));
  bool seen = false;
  std::shared_ptr<const Workspace> packed = cache.find(key, bytes_seen, &seen);
  if (packed != nullptr) return packed;
  if (seen || !is_optional) packed = pack_now(request);
  auto bytes = static_cast<int64_t>(sizeof(Entry) + bytes_seen.size() * sizeof(bytes_seen[0]));
  if (seen) bytes += packed->bytes();
  cache.keep({key, std::move(bytes_seen), seen ? packed : nullptr, bytes});
  return packed;
}

}  // namespace

std::shared_ptr<const Workspace> packed_weights(const PackingRequest& request) {
  return may_be_kept(request) ? looked_up(request, false) : pack_now(request);
}

std::shared_ptr<const Workspace> kept_packed_weights(const PackingRequest& request) {
  const int64_t most = std::min(kMostOptionalBytes, Cache::instance().limit());
  if (!may_be_kept(request) || request.packed_bytes > most) return nullptr;
  return looked_up(request, true);
}

int64_t packed_weights_limit() { return Cache::instance().limit(); }

void set_packed_weights_limit(int64_t bytes) {
  NNOPS_CHECK_VALUE(bytes >= 0, "set_packed_weight_cache: bytes must not be negative, but got ",
                    bytes);
  Cache::instance().set_limit(bytes);
}

void clear_packed_weights() { Cache::instance().clear(); }

PackedWeightsState packed_weights_state() { return Cache::instance().state(); }

}  // namespace nnops
