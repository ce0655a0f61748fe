// Stand-in: tensors in host memory.
#include "check.h"
#include "tensorrt_llm/executor/tensor.h"

#include <cstring>

namespace tensorrt_llm::runtime
{
// Memory of its own, or of somebody else if `own` is empty.
class ITensor
{
public:
    executor::DataType type = executor::DataType::kUNKNOWN;
    executor::MemoryType place = executor::MemoryType::kCPU;
    std::vector<std::int64_t> shape;
    std::vector<std::uint8_t> own;
    void* data = nullptr;
    std::size_t count = 0;
    std::size_t bytes = 0;
};
} // namespace tensorrt_llm::runtime

namespace tensorrt_llm::executor
{
namespace
{
std::size_t bytesOf(DataType type)
{
    switch (type)
    {
    case DataType::kBOOL:
    case DataType::kUINT8:
    case DataType::kINT8:
    case DataType::kFP8: return 1;
    case DataType::kBF16:
    case DataType::kFP16: return 2;
    case DataType::kINT32:
    case DataType::kFP32: return 4;
    case DataType::kINT64: return 8;
    case DataType::kUNKNOWN: break;
    }
    throw common::TllmException("unknown data type");
}

std::shared_ptr<runtime::ITensor> make(DataType type, MemoryType place, Shape shape, void* data)
{
    auto tensor = std::make_shared<runtime::ITensor>();
    tensor->type = type;
    tensor->place = place;
    tensor->shape.assign(shape.begin(), shape.end());
    tensor->count = 1;
    for (auto const extent : tensor->shape)
    {
        cuelight::standin::check(extent >= 0, "negative extent of a tensor");
        tensor->count *= static_cast<std::size_t>(extent);
    }
    tensor->bytes = tensor->count * bytesOf(type);
    if (data == nullptr)
    {
        tensor->own.resize(tensor->bytes);
        data = tensor->own.data();
    }
    tensor->data = data;
    return tensor;
}
} // namespace

Tensor::Tensor(std::shared_ptr<runtime::ITensor> tensor)
    : mTensor(std::move(tensor))
{
}

Tensor Tensor::cpu(DataType dataType, Shape shape)
{
    return Tensor(make(dataType, MemoryType::kCPU, shape, nullptr));
}

Tensor Tensor::pinned(DataType dataType, Shape shape)
{
    return Tensor(make(dataType, MemoryType::kCPU_PINNED, shape, nullptr));
}

// There is no device: it says that it is there, so that callers copy.
Tensor Tensor::gpu(DataType dataType, CudaStreamPtr, Shape shape)
{
    return Tensor(make(dataType, MemoryType::kGPU, shape, nullptr));
}

Tensor Tensor::of(DataType dataType, void* data, Shape shape)
{
    return Tensor(make(dataType, MemoryType::kCPU, shape, data));
}

Tensor Tensor::copyToCpu(CudaStreamPtr) const
{
    auto copy = cpu(getDataType(), getShape());
    copy.setFrom(*this);
    return copy;
}

Tensor Tensor::copyToPooledPinned(CudaStreamPtr) const
{
    auto copy = pinned(getDataType(), getShape());
    copy.setFrom(*this);
    return copy;
}

void* Tensor::getData()
{
    return mTensor->data;
}

void const* Tensor::getData() const
{
    return mTensor->data;
}

DataType Tensor::getDataType() const
{
    return mTensor->type;
}

MemoryType Tensor::getMemoryType() const
{
    return mTensor->place;
}

Shape Tensor::getShape() const
{
    return {mTensor->shape.data(), mTensor->shape.size()};
}

std::size_t Tensor::getSize() const
{
    return mTensor->count;
}

std::size_t Tensor::getSizeInBytes() const
{
    return mTensor->bytes;
}

void Tensor::setZero(CudaStreamPtr)
{
    std::memset(mTensor->data, 0, mTensor->bytes);
}

void Tensor::setFrom(Tensor const& other, CudaStreamPtr)
{
    cuelight::standin::check(other.getSizeInBytes() == getSizeInBytes(), "copy between tensors of different size");
    if (mTensor->bytes > 0)
    {
        std::memcpy(mTensor->data, other.mTensor->data, mTensor->bytes);
    }
}
} // namespace tensorrt_llm::executor
